"use strict";
(async function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const holder = document.getElementById("views");
  if (!data.image) { return; }
  async function bytes(text) {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  if (typeof DecompressionStream === "undefined") {
    holder.textContent = "This browser cannot unpack the image; the pictures below show it.";
    return;
  }
  const [nx, ny, nz] = data.shape, spacing = data.spacing, channels = data.channels;
  const image = await bytes(data.image);
  const masks = await Promise.all(data.regions.map((r) => (r.bits ? bytes(r.bits) : null)));
  const shown = data.regions.map(() => true);
  const at = data.start.slice();
  let opacity = 0.4;
  function inside(n, x, y, z) {
    const r = data.regions[n], bits = masks[n];
    if (!bits) { return false; }
    const [x0, y0, z0] = r.low, [sx, sy, sz] = r.size;
    const i = x - x0, j = y - y0, k = z - z0;
    if (i < 0 || j < 0 || k < 0 || i >= sx || j >= sy || k >= sz) { return false; }
    const p = i + sx * (j + sy * k);
    return (bits[p >> 3] >> (p & 7)) & 1;
  }
  // Each plane: which axis runs to the right, which downwards (and whether it is turned over), which is stepped through.
  const planes = nz > 1
    ? [["axial", 0, 1, 2, false, "R left, A top"], ["coronal", 0, 2, 1, true, "R left, S top"],
       ["sagittal", 1, 2, 0, true, "A left, S top"]]
    : [["image", 0, 1, 2, false, ""]];
  const size = [nx, ny, nz];
  const canvases = planes.map(([name, u, v, w]) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const slider = document.createElement("input"), caption = document.createElement("figcaption");
    canvas.width = size[u]; canvas.height = size[v];
    canvas.style.aspectRatio = `${size[u] * spacing[u]} / ${size[v] * spacing[v]}`;
    slider.type = "range"; slider.min = 0; slider.max = size[w] - 1; slider.hidden = size[w] === 1;
    slider.setAttribute("aria-label", name);
    slider.oninput = () => { at[w] = Number(slider.value); draw(); };
    figure.append(canvas, slider, caption);
    holder.append(figure);
    return { canvas, slider, caption };
  });
  planes.forEach(([name, u, v, w, over], n) => {
    const canvas = canvases[n].canvas;
    const pick = (event) => {
      const box = canvas.getBoundingClientRect();
      at[u] = Math.min(size[u] - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * size[u])));
      const row = Math.min(size[v] - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * size[v])));
      at[v] = over ? size[v] - 1 - row : row;
      draw();
    };
    canvas.onpointerdown = pick;
    canvas.onpointermove = (event) => { if (event.buttons) { pick(event); } };
    canvas.onwheel = (event) => {
      event.preventDefault();
      at[w] = Math.min(size[w] - 1, Math.max(0, at[w] + Math.sign(event.deltaY)));
      draw();
    };
  });
  function draw() {
    planes.forEach(([name, u, v, w, over, sides], n) => {
      const { canvas, slider, caption } = canvases[n];
      const context = canvas.getContext("2d"), picture = context.createImageData(size[u], size[v]);
      const p = [0, 0, 0];
      p[w] = at[w];
      const near = data.regions.map((r, m) => m).filter((m) => shown[m] && masks[m]
        && at[w] >= data.regions[m].low[w] && at[w] < data.regions[m].low[w] + data.regions[m].size[w]);
      for (let row = 0; row < size[v]; row++) {
        p[v] = over ? size[v] - 1 - row : row;
        for (let column = 0; column < size[u]; column++) {
          p[u] = column;
          const from = channels * (p[0] + nx * (p[1] + ny * p[2])), to = 4 * (column + size[u] * row);
          let red = image[from], green = image[from + (channels > 1 ? 1 : 0)], blue = image[from + (channels > 1 ? 2 : 0)];
          for (const m of near) {
            if (!inside(m, p[0], p[1], p[2])) { continue; }
            const c = data.regions[m].color;
            red += (c[0] - red) * opacity; green += (c[1] - green) * opacity; blue += (c[2] - blue) * opacity;
          }
          picture.data[to] = red; picture.data[to + 1] = green; picture.data[to + 2] = blue; picture.data[to + 3] = 255;
        }
      }
      context.putImageData(picture, 0, 0);
      if (nz > 1) {
        context.fillStyle = "rgba(80,200,255,.35)";
        context.fillRect(at[u], 0, 1, size[v]);
        context.fillRect(0, over ? size[v] - 1 - at[v] : at[v], size[u], 1);
      } else {
        data.regions.forEach((r, m) => {
          if (!r.box || !shown[m]) { return; }
          context.strokeStyle = `rgb(${r.color})`;
          context.lineWidth = Math.max(1, size[u] / 250);
          context.strokeRect(r.box[0], r.box[1], r.box[2] - r.box[0], r.box[3] - r.box[1]);
        });
      }
      slider.value = at[w];
      caption.textContent = nz > 1 ? `${name} ${at[w] + 1}/${size[w]}${data.placed ? `, ${sides}` : ""}` : "";
    });
  }
  function go(n) {
    const center = data.regions[n].center;
    document.querySelectorAll("[data-region]").forEach((e) => e.classList.toggle("on", Number(e.dataset.region) === n));
    if (center) { for (let k = 0; k < 3; k++) { at[k] = center[k]; } }
    draw();
  }
  document.querySelectorAll("[data-region]").forEach((element) => {
    element.addEventListener("click", () => go(Number(element.dataset.region)));
  });
  document.querySelectorAll("input[data-show]").forEach((box) => {
    box.addEventListener("click", (event) => event.stopPropagation());
    box.addEventListener("change", () => { shown[Number(box.dataset.show)] = box.checked; draw(); });
  });
  document.getElementById("opacity").addEventListener("input", (event) => { opacity = event.target.value / 100; draw(); });
  draw();
  document.body.dataset.ready = "yes";
  if (data.nifti && window.niivue) {
    const viewer = new niivue.Niivue({ backColor: [0, 0, 0, 1], isResizeCanvas: true });
    viewer.setRadiologicalConvention(true);
    await viewer.attachTo("gl");
    const raw = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
    const load = async (text, name, more) => viewer.addVolume(await niivue.NVImage.loadFromUrl({ url: raw(text), name, ...more }));
    await load(data.nifti.image, "image.nii.gz", { colormap: "gray" });
    if (data.nifti.labels) {
      await load(data.nifti.labels, "labels.nii.gz", { opacity: 0.5 });
      const table = data.regions.map((r) => r.color);
      viewer.volumes[1].setColormapLabel({
        R: [0, ...table.map((c) => c[0])], G: [0, ...table.map((c) => c[1])], B: [0, ...table.map((c) => c[2])],
        A: [0, ...table.map(() => 255)], I: [0, ...table.map((c, n) => n + 1)], labels: ["", ...data.regions.map((r) => r.name)],
      });
      viewer.updateGLVolume();
    }
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    document.body.dataset.niivue = "yes";
  }
})();
