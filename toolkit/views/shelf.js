// Parts of the schedule explorer: a row of its list, the filter over it, and what the levels look like.

const LABEL = 92, TILE_GAP = 4, MOST_LOOKS = 4, EVERY = ["", "every step", "every other step"], NOISE_CODES = 32;

/** A row of the list: its switch with the line as it is drawn, its name, and two of its options. */
function scheduleRow(name, i, toggle, open) {
  const button = (kind, text, click, o) => make("button", { type: "button", class: kind, click, ...o }, text);
  const spoken = { role: "switch", "aria-label": `show ${name}` };
  const eye = button("tk-eye", i < 10 ? String(i) : "", () => toggle(name), spoken);
  const fact = make("span"), pick = button("tk-pickname", name, () => open(name)), wrap = make("span", {}, eye);
  const swatch = shape(eye, "svg", { width: 28, height: 12, "aria-hidden": "true" });
  pick.append(fact);
  return { name, eye, pick, fact, swatch, node: make("div", { class: "tk-item", role: "listitem" }, wrap, pick) };
}

/** A field that hides the rows of a list whose names do not hold what is typed. */
function sieve(rows) {
  const field = make("input", { type: "search", class: "tk-seek", placeholder: "filter", spellcheck: "false",
    "aria-label": "filter schedules", "data-lm-suppress-shortcuts": "true", input: () => {
      const typed = field.value.trim().toLowerCase();
      for (const { name, node } of rows) node.hidden = !name.includes(typed);
    } });
  return field;
}

/**
 * Rows of small pictures: an image with its noise at some levels of each schedule. `bytes` holds the image, then the
 * noise, both (y, x, rgb); `go(step)` hears a click. set(rows [{name, cat, sigma}], width, step) draws what changed.
 */
function looks(bytes, path, go) {
  const count = bytes.length / 2, side = Math.sqrt(count / 3), made = {}, { node: head, bold, second } = caption("");
  const image = Float32Array.from(bytes.subarray(0, count), (c) => c / 127.5 - 1);
  const noise = Float32Array.from(bytes.subarray(count), (c) => (c > 127 ? c - 256 : c) / NOISE_CODES);
  const body = make("div"), node = make("div", { class: "tk-looks" }, head, body);
  let order = "";
  function paintLook(canvas, sigma) {
    const gain = path === "FLOW" ? 1 : 1 / Math.hypot(1, sigma), clean = path === "FLOW" ? 1 - sigma : gain;
    const context = canvas.getContext("2d"), out = context.createImageData(side, side), data = out.data;
    const a = 127.5 * clean, s = 127.5 * gain * sigma; // clamped by the array itself
    for (let i = 0, j = 0; i < count; i += 3, j += 4) {
      for (let c = 0; c < 3; c++) data[j + c] = a * image[i + c] + s * noise[i + c] + 127.5;
      data[j + 3] = 255;
    }
    context.putImageData(out, 0, 0), (canvas.sigma = sigma);
  }
  function rowOf(name) {
    const text = make("span", { class: "tk-look-name", text: name });
    return { node: make("div", { class: "tk-look", role: "img" }, text), tiles: [], text };
  }
  function tileOf(row, j) {
    const canvas = make("canvas", { width: side, height: side, click: () => go(canvas.step) });
    row.node.append(canvas);
    return (row.tiles[j] = canvas);
  }
  return { node, set(all, width, step) {
    const rows = all.slice(0, MOST_LOOKS), noisy = rows.map(({ sigma }) => sigma.filter((v) => v > 0).length);
    const fit = Math.max(1, Math.floor((width - LABEL + TILE_GAP) / (side + TILE_GAP)));
    const hop = Math.ceil(Math.max(1, ...noisy) / fit);
    const some = all.length > rows.length ? ` of ${rows.length} of ${all.length}` : "";
    put(bold, "What the levels look like"), node.classList.toggle("tk-gone", !rows.length);
    put(second, `${EVERY[hop] ?? `one step in ${hop}`}${some}, same image, same noise`
      + (path === "FLOW" ? "" : ", each divided by \u221a(1 + \u03c3\u00b2)"));
    const now = rows.map(({ name }) => name).join();
    if (now !== order) body.replaceChildren(...rows.map(({ name }) => (made[name] ??= rowOf(name)).node));
    order = now;
    rows.forEach(({ name, kind, sigma }, i) => {
      const row = made[name], shown = Math.ceil(noisy[i] / hop);
      row.node.className = `tk-look ${kind}`;
      for (let j = 0; j < Math.max(shown, row.tiles.length); j++) {
        const canvas = row.tiles[j] ?? tileOf(row, j), k = j * hop;
        canvas.hidden = j >= shown, canvas.step = k;
        canvas.classList.toggle("tk-now", k <= step && step < k + hop);
        if (j < shown && canvas.sigma !== sigma[k]) paintLook(canvas, sigma[k]);
      }
      const ends = [sigma[0], sigma[(shown - 1) * hop]].map((v) => (v == null ? "none" : +v.toPrecision(4)));
      row.node.setAttribute("aria-label", `an image with the noise of ${name}, sigma ${ends.join(" to ")}`);
    });
  } };
}
