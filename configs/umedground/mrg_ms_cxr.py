"""uMedGround on MRG-MS-CXR with the published numbers: LLaVA-Llama-2-13B, SAM ViT-H, three hypotheses, LoRA of rank 8.

Every option of the published training script is a value here (docs/umedground.md lists them side by side). What differs
on purpose: [BOX] is a token, all boxes are trained, one prompt for training and test, images are seen whole.
`mrg_ms_cxr_reference.py` keeps the published ways.
"""

_base_ = "../_base_/gpu_run.py"

task = dict(
    type="ReportGrounding",
    model=dict(
        type="UMedGround",
        llava="pretrained/llava-llama-2-13b-chat-lightning-preview",
        clip="pretrained/clip-vit-large-patch14",
        sam_weights="pretrained/sam_vit_h_4b8939.pth",
        box_head="mhp",
        template="llava_v1",
        style="tags",
        mask_content=None,
        tile_fit="pad",
        language_box_head=False,
    ),
    protocol="free",
    # What stays as it is: CLIP, its projector, SAM's encoder and prompt encoder.
    freeze=[
        "backbone.vlm.model.vision_tower",
        "backbone.vlm.model.multi_modal_projector",
        "mask_head.sam.vision_encoder",
        "mask_head.sam.prompt_encoder",
        "mask_head.sam.shared_image_embedding",
    ],
    # What is trained beside the adapters: SAM's mask decoder, projection, box head and output layer by default.
    trainable=["backbone.vlm.model.language_model.embed_tokens"],
    lora=dict(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"]),
    sam_lora=None,
    loss_weights=dict(text=1.0, box=1.0),
    box_options=dict(main_weight=0.95, margin=0.01, extra=1.0),
    language_box=0.0,
    # Features of SAM's frozen encoder are computed once per image.
    cache_images=2000,
    max_new_tokens=512,
)


def part(split, **options):
    return dict(
        type="MedicalGroundingDataset",
        path="data/ReasonGro/MS_CXR/MS_CXR_S_{split}.pth",
        images="data/ReasonGro/MS_CXR/images",
        format="mrg",
        split=split,
        **options,
    )


train_data = dict(mixture=[dict(dataset=part("train"), weight=1.0)])
val_data = part("val")
test_data = part("test")
collate = dict(type="GroundedCollator")
optimizer = dict(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)
schedule = dict(type="linear", warmup=100)
batch_size = 2
accumulate = 10
max_steps = 5000
strategy = "zero2"
gradient_checkpointing = True
num_workers = 2
log = dict(interval=1)
validate_interval = 500
work_dir = "work_dirs/umedground_ms_cxr"
