// The hands of the region inspector: what paints, what reads a pixel, and the list of regions. draw.js and masks.js
// stand before.

const EYE = "M.7 6C3 2.4 9 2.4 11.3 6 9 9.6 3 9.6.7 6ZM6 4.3A1.7 1.7 0 1 0 6 7.7 1.7 1.7 0 1 0 6 4.3Z";

/** Bytes as text that any wire carries. */
function textOf(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return btoa(text);
}

/**
 * The hand that paints. `mask(i)` gives {codes, rows, columns, sample} of mask i; `touched(i, top, bottom)` hears which
 * rows changed, `done(i, sample, box, codes)` the rectangle of every whole stroke, undone and redone ones too.
 */
function painter({ size: [h, w], mask, touched, done, most }) {
  let now = null, past = [], future = [];
  const wider = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];
  const put = ({ i, sample, box }, patch) => {
    const { codes, columns } = mask(i, sample);
    rectangle(codes, columns, box, patch), touched(i, box[0], box[2]), done(i, sample, box, patch);
  };
  const turn = (from, to, which) => () => {
    const step = !now && from().pop();
    if (step) to().push(step), put(step, step[which]);
    return true;
  };
  return {
    down(i, place, radius, value) {
      const { codes, rows, columns, sample } = mask(i);
      now = { i, rows, columns, sample, radius, value, before: codes.slice(), at: place, box: null }, this.move(place);
    },
    move(place) {
      if (!now) return false;
      const { i, sample, rows, columns, radius, value } = now;
      const box = stroke(mask(i, sample).codes, rows, columns, h, w, now.at, place, radius, value);
      now.at = place, now.box = now.box ? wider(now.box, box) : box, touched(i, box[0], box[2]);
      return true;
    },
    up() {
      if (!now) return;
      const { i, sample, columns, before, box } = now, { codes } = mask(i, sample);
      const step = { i, sample, box, before: rectangle(before, columns, box), after: rectangle(codes, columns, box) };
      past = [...past.slice(1 - most), step], future = [], now = null, done(i, sample, box, step.after);
    },
    undo: turn(() => past, () => future, "before"), redo: turn(() => future, () => past, "after"),
    busy: () => now != null, strokes: () => past.length, forget: () => (past = [], future = []),
  };
}

/** Lets rows of a list be dragged: `rows()` gives their nodes as they stand, `drop(from, to)` hears where one went. */
function sortable(list, rows, drop) {
  let from = -1, start = 0, dragging = false;
  const place = (y) => rows().filter((row) => y > row.getBoundingClientRect().top + row.offsetHeight / 2).length;
  list.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.target.closest("button, input")) return;
    from = rows().findIndex((row) => row.contains(event.target)), start = event.clientY, dragging = false;
  });
  list.addEventListener("pointermove", (event) => {
    if (from < 0 || (!dragging && Math.abs(event.clientY - start) < 6)) return;
    if (!dragging) (dragging = true), list.setPointerCapture(event.pointerId), list.classList.add("tk-sorting");
    const to = place(event.clientY), at = clamp(to > from ? to - 1 : to, 0, rows().length - 1);
    if (at !== from) drop(from, at), (from = at);
  });
  const end = () => ((from = -1), (dragging = false), list.classList.remove("tk-sorting"));
  for (const kind of ["pointerup", "pointercancel"]) list.addEventListener(kind, end);
}

/**
 * Pointer and keys over a picture of h x w pixels: over(place or null) follows the pointer, in parts of the picture,
 * pick([y, x]) hears a click and the arrow keys, which go on from pinned(); `hand` paints while brush() is
 * {i, radius, value}.
 */
function overPicture(node, { size: [h, w], hand, brush, over, pick, pinned }) {
  const spot = (event) => {
    const box = node.getBoundingClientRect();
    return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
  };
  const inside = (place) => place.every((v) => v >= 0 && v < 1), end = () => hand.up();
  node.addEventListener("pointerdown", (event) => {
    const tool = event.button === 0 && brush();
    over(spot(event));
    if (!tool) return;
    node.setPointerCapture(event.pointerId), node.focus({ preventScroll: true, focusVisible: false });
    hand.down(tool.i, spot(event), tool.radius, tool.value);
  });
  node.addEventListener("pointermove", (event) => {
    for (const one of hand.busy() ? event.getCoalescedEvents?.() ?? [] : []) hand.move(spot(one));
    hand.move(spot(event)), over(inside(spot(event)) ? spot(event) : null);
  });
  node.addEventListener("pointerup", end), node.addEventListener("pointercancel", end);
  node.addEventListener("pointerleave", () => over(null));
  node.addEventListener("click", (event) => {
    const [y, x] = spot(event);
    if (!brush() && inside([y, x])) pick([Math.floor(y * h), Math.floor(x * w)]);
  });
  const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  node.addEventListener("keydown", (event) => { // a pixel can be read without a pointer
    const hop = !event.altKey && arrows[event.key], by = event.shiftKey ? 10 : 1, [y, x] = pinned();
    if (!hop) return;
    over(null), pick([clamp(y + by * hop[0], 0, h - 1), clamp(x + by * hop[1], 0, w - 1)], true);
    event.preventDefault(), event.stopPropagation();
  });
}

/**
 * The list of regions [{name, words}]: focus(i), toggle(i), shift(from, to), turn(i, setting, value); `first` are the
 * settings of the beginning, `reach` the longest radius of a slider. set({order, shown, at, settings}) shows how they
 * stand, `shown` as a set.
 */
function regionList(all, { focus, toggle, shift, turn, first, reach }) {
  const node = make("div", { class: "tk-list tk-regions", role: "listbox", "aria-label": "regions" }), drawn = {};
  const open = make("div", { class: "tk-dials" });
  let dials = [];
  const rows = all.map(({ name, words }, i) => {
    const eye = icon(`show ${name}`, EYE, () => toggle(i), "tk-see").node, says = { "aria-label": `${name} ${words}` };
    const badge = make("i", { class: `tk-number tk-cat${i % 6}` });
    const parts = [make("b", { text: name }), make("span", { text: words })];
    const kind = { role: "option", class: "tk-option", tabindex: -1, click: () => focus(i) };
    const option = make("div", { ...kind, ...says }, badge, ...parts);
    eye.setAttribute("role", "switch");
    option.addEventListener("keydown", (event) => event.key === "Enter" && toggle(i));
    return { option, badge, eye, node: make("div", { class: "tk-item", role: "group" }, option, eye) };
  });
  open.addEventListener("keydown", (event) => {
    if (event.key === "Escape") rows[drawn.dials].option.focus(), event.stopPropagation();
  });
  sortable(node, () => (drawn.order ?? []).map((i) => rows[i].node), shift);
  function build(i) { // again only for another region, so that a slider in the hand stays the same
    const px = (sign) => (v) => `${sign && v > 0 ? "+" : ""}${format.minus(String(+v.toPrecision(4)))} px`;
    const spec = [{ name: "feather", low: 0, high: 2 * reach, hop: 0.5, say: px(false) },
      { name: "grow", low: -reach, high: reach, hop: 0.5, say: px(true) },
      { name: "strength", low: 0.05, high: 1, hop: 0.05, say: (v) => format.fixed(v, 2) }];
    const hear = ({ name }) => (v) => turn(i, name, v), plain = first[i];
    dials = spec.map((one) => dial({ ...one, label: one.name, value: plain[one.name] }, hear(one)));
    open.replaceChildren(...dials.map((d) => d.node)), (drawn.dials = i);
  }
  return { node, set({ order, shown, at, settings }) {
    const key = JSON.stringify([order, [...shown], at]);
    if (key !== drawn.key) {
      const had = document.activeElement, inList = node.contains(had) && had.matches("[role=option]");
      if (String(order) !== String(drawn.order)) node.replaceChildren(...order.map((i) => rows[i].node), open);
      drawn.order = order;
      order.forEach((i, n) => {
        const { option, badge, eye, node: row } = rows[i], on = shown.has(i), chosen = i === at;
        put(badge, String(n)), row.classList.toggle("tk-open", chosen), row.classList.toggle("tk-on", on);
        option.setAttribute("aria-selected", String(chosen)), (option.tabIndex = chosen ? 0 : -1);
        eye.setAttribute("aria-checked", String(on));
      });
      if (drawn.dials !== at) build(at);
      if (rows[at].node.nextSibling !== open) rows[at].node.after(open);
      if (inList) rows[at].option.focus();
      drawn.key = key;
    }
    for (const d of dials) d.set(settings[at][d.name]);
  } };
}
