// What all views of a run's rungs share: the traits, where one is, how one moves, and the foot. draw.js stands before.

/** The traits of a view: read, write, and listeners that end with it. */
function traits(model) {
  const get = (name) => model.get(name), ends = [];
  const write = (values) => { for (const name in values) model.set(name, values[name]); model.save_changes(); };
  return {
    get, write,
    blob: (name) => asBytes(get(`_${name}`)),
    choose: (name) => (value) => write({ [name]: value }),
    next: (name, values) => () => write({ [name]: values[(values.indexOf(get(name)) + 1) % values.length] }),
    on(name, fn) { model.on(`change:${name}`, fn), ends.push(() => model.off(`change:${name}`, fn)); },
    hear(fn) { model.on("msg:custom", fn), ends.push(() => model.off("msg:custom", fn)); },
    until: (...more) => ends.push(...more),
    end: () => ends.forEach((end) => end()),
  };
}

/** Keys at the left of the foot, all of them after `?`, and the value at its right. `redo` lays the view out again. */
function foot(short, more, redo) {
  const list = make("div", { class: "tk-keys" }), value = make("div");
  let open = false;
  const toggle = () => { open = !open, redo(); };
  return {
    node: make("div", { class: "tk-foot" }, list, value), toggle,
    say(text, kind) { value.className = `tk-value-text ${kind}`, put(value, text); },
    set(narrow, none = narrow) {
      const close = hints([[["?"], open ? "close" : narrow ? "keys" : "all keys"]]);
      list.replaceChildren(...hints(open ? [...short, ...more] : none ? [] : short),
        make("button", { type: "button", "aria-expanded": String(open), click: toggle }, ...close));
    },
    close: () => open && (toggle(), true), // true: there was something to close
  };
}

/** The slider that a rail is drawn into. */
const railOf = (last) => make("div", { class: "tk-rail", role: "slider", tabindex: 0, "aria-label": "rung",
  "aria-valuemin": 0, "aria-valuemax": last });

/** The rung that one is at, told to Python; the player; the keys that move; what drags and hovers over a rail do.
 *  `show` asks for a frame; `track` gives the rail, if there is one; `moved` follows every move. */
function voyage(it, run, { show, track = () => null, moved = () => {}, zoom = () => {}, whole = () => {} }) {
  const write = throttle(() => it.write({ rung: run.rungs[me.k], sigma: run.sigma[me.k] }), 50);
  const tell = frame(write); // what goes to Python waits until the frame is drawn
  const go = (k) => { if (run.R) (me.k = clamp(k, 0, run.R - 1)), show(), tell(), moved(); };
  const hop = (n) => () => (play.stop(), go(me.k + n));
  const play = player((n) => go(me.k + n), (n) => me.k === (n > 0 ? run.R - 1 : 0));
  const part = (n) => () => hop(n * Math.max(1, Math.round(run.R / 10)))();
  const turn = (n) => () => run.R > 1 && play.toggle(n);
  const me = {
    k: run.nearest(it.get("rung")), tip: "", go, play,
    keys: { ArrowLeft: hop(-1), ArrowRight: hop(1), "Shift+ArrowLeft": hop(-10), "Shift+ArrowRight": hop(10),
      PageUp: part(-1), PageDown: part(1),
      Home: hop(-Infinity), End: hop(Infinity), " ": turn(1), "Shift+ ": turn(-1) },
    hands: { zoom, whole, hop: (n) => hop(n)(),
      to: (x) => run.R && track() && (play.stop(), go(track().at(x))),
      over(x) {
        const k = x == null || !track() || !run.R ? null : track().at(x);
        me.tip = k == null ? "" : `rung ${run.rungs[k]}  \u03c3 ${format.sigma(run.sigma[k])}`, show();
      } },
    spoken: () => `rung ${run.rungs[me.k]} of ${run.planned - 1}, sigma ${+run.sigma[me.k].toPrecision(4)}`
      + (run.log_snr ? `, log-SNR ${format.spoken(run.log_snr[me.k])}` : ""),
  };
  it.on("rung", () => { const k = run.nearest(it.get("rung")); if (k !== me.k) (me.k = k), show(); });
  it.until(play.stop, tell.stop, write.stop);
  return me;
}

/**
 * Calls `recolour` when the theme changes, and `layout` for every width that the view has. Returns what asks for
 * `recolour`. Out of the page an element has no colours to read: a view that leaves it has them when it is back.
 */
function fitted(it, el, { recolour, layout }) {
  let wide = 0;
  const again = frame(() => wide && el.isConnected && (theme(el), recolour()));
  const size = new ResizeObserver(() => {
    const first = !wide;
    wide = el.clientWidth < 100 ? 0 : el.clientWidth; // hidden, or folding: it is laid out when it shows
    if (wide) theme(el), first && recolour(), layout(wide);
  });
  size.observe(el);
  it.until(onTheme(again), again.stop, () => size.disconnect());
  return again;
}

/** Esc gives the focus back to the cell. */
const leaveView = (el) => { document.activeElement.blur(), el.closest(".jp-Cell")?.focus(); };

/** The part of a rail that is shown, between margins left and right: zoom(clientX, factor) down to `least()` of it. */
function lens(slider, left, right, least, redo) {
  const me = {
    range: [0, 1],
    zoomed: () => me.range[1] - me.range[0] < 1,
    whole: () => { me.range = [0, 1], redo(); },
    zoom(x, factor) {
      const box = slider.getBoundingClientRect(), inner = box.width - left - right;
      const part = clamp((x - box.left - left) / inner, 0, 1), [a, b] = me.range;
      const size = clamp((b - a) * factor, Math.min(1, least()), 1);
      const low = clamp(a + (b - a - size) * part, 0, 1 - size);
      me.range = [low, low + size], redo();
    },
  };
  return me;
}

/** First and last row of a range [a, b] of the positions `u` of rungs: from the one before it to the one after. */
function spanOf(run, u, [a, b]) {
  const off = (k) => Math.abs(u[k] - (a + b) / 2), all = run.rungs.map((_, k) => k);
  const inside = all.filter((k) => off(k) <= (b - a) / 2);
  if (!inside.length) inside.push(all.reduce((best, k) => (off(k) < off(best) ? k : best), 0));
  return [run.rungs[Math.max(0, inside[0] - 1)], run.rungs[Math.min(run.R - 1, inside.at(-1) + 1)]];
}

/** Python's own value under a resting pointer at place(): probe() asks, of(mark, sample, k) has it when it came. */
function exactly(it, run, place, at) {
  const probe = rest(() => {
    const p = place();
    if (p && run.R) it.write({ pixel: [p.name, p.c, p.y, p.x, run.rungs[at()]] });
  }, 150);
  it.until(probe.stop);
  return { probe, of({ name, c, y, x }, s, k) {
    const exact = it.get("_exact"), same = exact?.at?.join() === [name, c, y, x, run.rungs[k]].join();
    return same && exact.sample === s ? Number(exact.value) : null;
  } };
}

/** The rungs at `index` among n old ones and, after them, the new ones, of `size` bytes each. */
function gathered(old, fresh, n, index, size) {
  const out = new Uint8Array(index.length * size);
  const part = (bytes, k) => bytes.subarray(k * size, (k + 1) * size);
  index.forEach((k, i) => out.set(k < n ? part(old, k) : part(fresh, k - n), i * size));
  return out;
}

/** Bytes one after the other. */
function joined(parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (out.set(part, at), at + part.length), 0);
  return out;
}

/**
 * Rungs that come while a view is open, of a run that grows or of a range that is zoomed to: no more of them than
 * `run` lacks. came(row, error) follows, with what row() was before. Returns ask({refresh}), ask({span}), ask({whole}).
 */
function supply(it, run, row, came) {
  const ask = (what) => it.write({ _ask: { ...what, turn: Math.random() } });
  const names = ["latent", "denoised", "floats", "pictures"];
  run.bytes = Object.fromEntries(names.map((name) => [name, it.blob(name)])), run.version ??= 0;
  it.hear(({ error, base, version, index, meta }, buffers) => {
    if (error) return came(row(), error);
    if (base != null && base !== run.version) return version === run.version || ask({ whole: true });
    const n = base == null ? 0 : run.R, old = run.bytes, was = row(), fresh = buffers.map(asBytes);
    const size = meta.shape.slice(1).reduce((a, b) => a * b), more = size ? fresh[0].length / size : 0;
    const atlas = (i) => {
      const there = fresh[i].length || (n && old[names[i]].length);
      return gathered(old[names[i]], fresh[i], n, index, there ? size : 0);
    };
    let first = 0, second = 0;
    const tables = meta.floats.map(([, count]) => {
      const each = index.length ? (4 * count) / index.length : 0;
      const table = gathered(old.floats.subarray(first), fresh[2].subarray(second), n, index, each);
      return (first += n * each), (second += more * each), table;
    });
    const bytes = { latent: atlas(0), denoised: atlas(1), floats: joined(tables),
      pictures: n && !fresh[3].length ? old.pictures : joined([n ? old.pictures : [], fresh[3]]) };
    Object.assign(run, unpack(meta, (name) => bytes[name]), { bytes, version }), came(base == null ? null : was);
  });
  if ((it.get("_version") ?? 0) !== run.version) ask({ whole: true }); // the model has what it was born with
  return ask;
}
