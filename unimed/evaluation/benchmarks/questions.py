"""Questions about images: open ones, and ones with choices. (SLAKE and Path-VQA stand with Uni-Med's sets.)"""

from unimed.evaluation.benchmarks.declaring import declare

declare(
    name="vqa/vqa_rad",
    task="answers",
    reader="VqaRadDataset",
    reader_options={"split": "test"},
    scorer="unimed.evaluation.scorers.multi_task:score_benchmarks",
    metrics=("exact_match", "token_f1", "bleu_1"),
    files={"root": "."},
    train={"split": "train"},
    folder="vqa_rad",
    layout="VQA_RAD Dataset Public.json, VQA_RAD Image Folder/",
    license="CC0 1.0",
    homepage="https://osf.io/89kps/",
    leaks="the published training questions are about the images of the test questions; here those are left out of "
    "training, so no image is in both (shared_images='keep' of the reader keeps them)",
    row_kind="answer",
    note="models trained on the published training part have seen the test images",
)
for _name, _reader, _options, _files, _train, _about in (
    ("pmc_vqa", "PmcVqaDataset", {"split": "test"}, {"root": "."}, {"split": "train"}, dict(
        layout="test_clean.csv and train.csv, figures/", license="CC BY-SA 4.0, figures as their articles say",
        homepage="https://huggingface.co/datasets/xmcmic/PMC-VQA",
        leaks="figures of PubMed Central, on which most biomedical models were trained (PMC-OA, LLaVA-Med, ROCO)")),
    ("omnimedvqa", "OmniMedVqaDataset", {"split": "test"}, {"root": "."}, None, dict(
        layout="QA_information/Open-access/*.json, Images/", license="per source, see the homepage",
        homepage="https://huggingface.co/datasets/foreverbeliever/OmniMedVQA",
        leaks="made of 42 public sets, test and training parts mixed: their images are in many training sets")),
    ("medxpertqa_mm", "MedXpertQaDataset", {"split": "test"}, {"root": "."}, {"split": "dev"}, dict(
        layout="MM/test.jsonl, MM/dev.jsonl, images/", license="MIT",
        homepage="https://huggingface.co/datasets/TsinghuaC3I/MedXpertQA", leaks="")),
    ("mmmu_med", "MmmuMedDataset", {"split": "validation"}, {"root": "."}, {"split": "dev"}, dict(
        layout="SUBJECT/validation-*.parquet and SUBJECT/dev-*.parquet of five subjects", license="Apache-2.0",
        homepage="https://huggingface.co/datasets/MMMU/MMMU",
        leaks="the validation part is public with its answers; those of the test part are not")),
):  # fmt: skip
    declare(
        name=f"vqa/{_name}",
        task="answers",
        reader=_reader,
        reader_options=_options,
        split=_options["split"],
        scorer="unimed.evaluation.scorers.choices:score_choices",
        metrics=("exact_match", "token_f1"),
        files=_files,
        train=_train,
        folder=_name,
        row_kind="answer",
        note="an answer is the choice that it names; one that names none is wrong",
        **_about,
    )
