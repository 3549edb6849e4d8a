// What is drawn over and beside a picture with masks. draw.js and masks.js stand before.

/** The three bytes of a colour written as six hex digits. */
const bytesOf = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));

/** Colours of the masks in this theme: six categories, paper and ink as text, and the sequential map. */
function maskColours(el) {
  const style = getComputedStyle(el), read = (name) => style.getPropertyValue(`--tk-${name}`).trim();
  const colours = [0, 1, 2, 3, 4, 5].map((k) => read(`cat-${k}`));
  return Object.assign(colours, { paper: read("scrim"), solid: read("solid"), sequential: lut(el, "sequential") });
}

/** Puts a colour on a canvas of the size of a plane, as opaque as the plane says; `unit` makes values 0..255. */
function tint(canvas, plane, colour, unit = 255) {
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const words = new Uint32Array(image.data.buffer), [r, g, b] = bytesOf(colour), word = (b << 16) | (g << 8) | r;
  for (let p = 0; p < words.length; p++) words[p] = ((Math.round(plane[p] * unit) << 24) | word) >>> 0;
  context.putImageData(image, 0, 0);
}

/** Canvases to draw with, kept from frame to frame: a new one costs more than what is drawn on it. */
function easel() {
  const kept = {};
  return (name, width, height) => {
    const canvas = (kept[name] ??= document.createElement("canvas"));
    if (canvas.width !== width || canvas.height !== height) (canvas.width = width), (canvas.height = height);
    return canvas;
  };
}

/** Tint and hatch of a category as a small canvas that repeats: / \ dots, horizontal, vertical, grid. */
function hatchTile(cat, colour, ratio) {
  const side = Math.round(12 * ratio), canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  const lines = [["M-1 13 13-1M-1 1 1-1M11 13 13 11"], ["M-1-1 13 13M11-1 13 1M-1 11 1 13"], [], ["M0 3H12M0 9H12"],
    ["M3 0V12M9 0V12"], ["M0 6H12M6 0V12"]][cat];
  canvas.width = canvas.height = side, context.scale(side / 12, side / 12);
  context.strokeStyle = context.fillStyle = colour, context.lineWidth = 1.2;
  context.globalAlpha = 0.26, context.fillRect(0, 0, 12, 12), context.globalAlpha = 0.55;
  for (const d of lines) context.stroke(new Path2D(d));
  const dot = (x) => (context.beginPath(), context.arc(x, x, 1.3, 0, 7), context.fill());
  if (cat === 2) dot(3), dot(9);
  return canvas;
}

/** A checkerboard of two colours as a small canvas that repeats. */
function checkTile(dark, light, ratio) {
  const side = Math.round(5 * ratio), canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  canvas.width = canvas.height = 2 * side;
  context.fillStyle = light, context.fillRect(0, 0, 2 * side, 2 * side);
  context.fillStyle = dark, context.fillRect(0, 0, side, side), context.fillRect(side, side, side, side);
  return canvas;
}

/** The part of a canvas that a plane is not 0 in, [x, y, width, height], with a pixel of the plane around it. */
function reachOf(plane, h, w, { width, height }) {
  let [top, left, bottom, right] = [h, w, 0, 0];
  for (let y = 0; y < h; y++)
    for (let x = 0; x < w; x++)
      if (plane[y * w + x] > 0) {
        top = Math.min(top, y), bottom = y + 1, left = Math.min(left, x), right = Math.max(right, x + 1);
      }
  const from = (v, n, size) => Math.floor((Math.max(0, v - 1) / n) * size);
  const to = (v, n, size) => Math.ceil((Math.min(n, v + 1) / n) * size);
  const [x, y] = [from(left, w, width), from(top, h, height)];
  return [x, y, Math.max(0, to(right, w, width) - x), Math.max(0, to(bottom, h, height) - y)];
}

/** A pattern where a plane is, onto a canvas of the size of `canvas` that is kept under `name`: {layer, box}. */
function patterned(at, name, canvas, { plane, h, w, unit }, colour, pattern) {
  const { width, height } = canvas, layer = at(name, width, height), veil = at(`veil ${h} ${w}`, w, h);
  const box = reachOf(plane, h, w, canvas), context = layer.getContext("2d");
  context.globalCompositeOperation = "source-over", context.clearRect(0, 0, width, height);
  if (!box[2] || !box[3]) return { layer, box };
  tint(veil, plane, colour, 255 / unit);
  context.save(), context.beginPath(), context.rect(...box), context.clip();
  context.fillStyle = context.createPattern(pattern, "repeat"), context.fillRect(...box);
  context.globalCompositeOperation = "destination-in", context.drawImage(veil, 0, 0, width, height), context.restore();
  return { layer, box };
}

/**
 * Masks over a picture: the hole as a checkerboard, then of each layer {name, plane, h, w, unit, cat, focused} tint,
 * hatch and contour. `canvas` has the pixels of the screen, `at` gives canvases to draw with; `unit` is the weight of
 * a 1. Only what changed is drawn anew: a plane is another array then, unless it is being painted.
 */
function drawOverlay(canvas, { at, colours, gaps, size: [h, w], layers }) {
  const context = canvas.getContext("2d"), { width, height } = canvas, ratio = devicePixelRatio;
  const key = `${width} ${height}`;
  const known = (colours.known ??= { patterns: {}, layers: {} });
  const patterns = (known.patterns[ratio] ??= {
    hole: checkTile(colours.solid, colours.paper, ratio), hatch: colours.map((c, k) => hatchTile(k, c, ratio)),
  });
  const put = ({ layer, box }, alpha) => {
    context.globalAlpha = alpha;
    if (box[2] && box[3]) context.drawImage(layer, ...box, ...box);
    context.globalAlpha = 1;
  };
  context.clearRect(0, 0, width, height), context.lineJoin = context.lineCap = "round";
  if (gaps) put(patterned(at, "hole", canvas, { plane: gaps, h, w, unit: 1 }, colours.solid, patterns.hole), 0.8);
  for (const one of layers) {
    const { name, plane, unit, cat, focused } = one, colour = colours[cat], old = known.layers[name];
    const still = old?.plane === plane && old.key === key && unit === 1;
    const now = still ? old : { plane, key, ...patterned(at, `layer ${name}`, canvas, one, colour, patterns.hatch[cat]),
      line: contourOf(plane, one.h, one.w, unit / 2, width / one.w, height / one.h) };
    known.layers[name] = now, put(now, focused ? 1 : 0.85);
    context.strokeStyle = colours.paper, context.lineWidth = (focused ? 3.6 : 2.8) * ratio, context.stroke(now.line);
    context.strokeStyle = colour, context.lineWidth = (focused ? 2.2 : 1.5) * ratio, context.stroke(now.line);
  }
}

/** Where masks overlap and where none is, on the latent: `times` x `times` canvas pixels a latent pixel. */
function drawExcess(canvas, { excess, gaps }, w, times, colours) {
  const wide = canvas.width, ink = colours.sequential[255], context = canvas.getContext("2d");
  const image = context.createImageData(wide, canvas.height), words = new Uint32Array(image.data.buffer);
  for (let q = 0; q < words.length; q++) {
    const y = Math.floor(q / wide), x = q % wide, p = Math.floor(y / times) * w + Math.floor(x / times);
    words[q] = gaps[p] && (x + y) % 2 ? ink : colours.sequential[Math.round(255 * Math.min(1, excess[p]))];
  }
  context.putImageData(image, 0, 0);
}

/** A sign of warning, what it is about, and how much. */
function warning(bold, text) {
  const node = make("div"), size = { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" };
  const box = shape(node, "svg", size);
  shape(box, "path", { d: "M8 2 15 14H1ZM8 6.5V10M8 11.5V12.5" });
  node.append(make("span", {}, make("b", { text: bold }), ` ${text}`));
  return node;
}

const moveTo = (node, x, y) => { node.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`; };

/** What the sampler sees: a tile of each region and one of their overlap. fit(room), set(order, planes, ...). */
function seenTiles(all, h, w) {
  const node = make("div", { class: "tk-seen" }), fine = Math.ceil(64 / Math.max(h, w)); // checks on few pixels
  const cell = (times, kind) => {
    const t = tile(times * w, times * h), name = make("b", { class: kind }), fact = make("span");
    t.node.style.aspectRatio = `${w} / ${h}`, t.node.classList.add("tk-plain");
    return { ...t, name, fact, figure: make("div", {}, t.node, make("div", { class: "tk-caption" }, name, fact)) };
  };
  const cells = all.map((_, i) => cell(1, `tk-named tk-cat${i % 6}`)), last = cell(fine, "");
  let drawn = "";
  put(last.name, "overlap"), last.node.setAttribute("aria-label", "where masks add up to more than 1");
  const fit = (room) => {
    const columns = clamp(Math.floor((room + 12) / 112), 2, Math.max(4, cells.length + 1));
    node.style.setProperty("--tk-columns", String(columns));
  };
  return { node, fit, set(order, planes, cover, colours) {
    if (drawn !== String(order)) node.replaceChildren(...order.map((i) => cells[i].figure), last.figure);
    drawn = String(order);
    order.forEach((i, n) => {
      const { canvas, name, fact, node: frame } = cells[i], sum = planes[i].reduce((a, b) => a + b, 0);
      const text = `${format.fixed((100 * sum) / (h * w), 1)} %`;
      put(name, `${n} ${all[i].name}`), put(fact, text), tint(canvas, planes[i], colours[i % 6]);
      frame.setAttribute("aria-label", `${all[i].name} covers ${text} of the latent`);
    });
    drawExcess(last.canvas, cover, w, fine, colours), put(last.fact, cover.hole ? "checks: hole" : "no hole");
  } };
}

/** What is wrong, as [bold, text]: hole and overlap of `coverageOf`, by places in the list, and empty masks. */
function complaints({ hole, overlap, pair }, order, empty) {
  const part = (v) => `${v < 5e-4 ? "under 0.1" : format.fixed(100 * v, 1)} %`;
  const who = pair?.map((i) => order.indexOf(i)).sort((a, b) => a - b).join(" and ");
  return [hole && ["Hole", `${part(hole)} of the latent is in no region`],
    overlap && ["Overlap", `${part(overlap)}${who ? `, most between ${who}` : ""}`],
    empty.length && ["Empty", `nothing is left of ${empty.join(", ")}`]].filter(Boolean);
}

/** Weights at a place: rows [name, cat, weight], what is left, and the sum before normalising. */
function weighed(node, rows, left, sum) {
  const every = left > 5e-3 ? [...rows, ["rest", "x", left]] : rows, two = (v) => format.fixed(v, 2);
  const piece = (kind, cat, grow) => {
    const part = make("i", { class: `${kind} tk-cat${cat}` });
    part.style.flexGrow = String(grow);
    return part;
  };
  const all = `sum ${two(sum)}${sum > 1 ? " \u2192 1" : ""}`;
  node.replaceChildren(
    make("div", { class: "tk-muted" }, make("span", { text: "weight here" }), make("span", { text: all })),
    make("div", { class: "tk-parts" }, ...every.map(([, cat, v]) => piece("tk-part", cat, v))),
    ...every.map(([name, cat, v]) =>
      make("div", {}, piece("tk-spot", cat, 0), make("span", { text: name }), make("span", { text: two(v) }))));
}

/** Crosshair, brush and card of weights over a picture: set({spot: [y, x], size, round, card, labels}), or set({}). */
function pointerMarks(host) {
  const [cross, brush, card] = ["tk-cross", "tk-brush", "tk-readout tk-weights"].map((kind) =>
    make("div", { class: kind, hidden: "", "aria-hidden": "true" }));
  host.append(cross, brush, card);
  return { set({ spot, size, round, card: told, labels }) {
    cross.hidden = card.hidden = !told, brush.hidden = !round;
    if (round) moveTo(brush, spot[1] - round / 2, spot[0] - round / 2);
    if (round) brush.style.width = brush.style.height = `${round}px`;
    if (!told) return;
    moveTo(cross, spot[1], spot[0]), weighed(card, ...told);
    moveTo(card, ...beside(spot, [size[1], size[0]], [card.offsetWidth, card.offsetHeight], labels));
  } };
}

/** Where a card of [width, height] stands beside a spot [y, x], 16 px from it, inside the room and off the `labels`. */
function beside([y, x], [width, height], [wide, tall], labels = []) {
  const places = [[x + 16, y + 16], [x - wide - 16, y - tall - 16], [x + 16, y - tall - 16], [x - wide - 16, y + 16]];
  const hides = ([left, top]) => labels.filter((b) =>
    left < b[2] && left + wide > b[0] && top < b[3] && top + tall > b[1]).length;
  const cost = ([left, top]) => hides([left, top])
    + 4 * (left < 4 || left + wide > width - 4) + 4 * (top < 4 || top + tall > height - 4);
  const [left, top] = places.reduce((best, place) => (cost(place) < cost(best) ? place : best));
  return [clamp(left, 4, Math.max(4, width - wide - 4)), clamp(top, 4, Math.max(4, height - tall - 4))];
}

/** Sets labels on their spots [y, x], inside the room and none over another; returns [left, top, right, bottom]. */
function apart(nodes, spots, width, height) {
  const taken = [], inside = (v, size, room) => clamp(v - size / 2, 4, Math.max(4, room - size - 4));
  nodes.forEach((node, n) => {
    const wide = node.offsetWidth, tall = node.offsetHeight, [y, x] = spots[n], left = inside(x, wide, width);
    const clash = (top) => taken.some((b) =>
      left < b[2] + 4 && left + wide > b[0] - 4 && top < b[3] + 4 && top + tall > b[1] - 4);
    const hop = (_, k) => inside(y + Math.ceil(k / 2) * 8 * (k % 2 ? 1 : -1), tall, height);
    const hops = Array.from({ length: 24 }, hop);
    const top = hops.find((at) => !clash(at)) ?? hops[0];
    moveTo(node, left, top), taken.push([left, top, left + wide, top + tall]);
  });
  return taken;
}
