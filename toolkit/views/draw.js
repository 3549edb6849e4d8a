// What all views draw with: plain functions over plain arrays. Knows no model, no trait and no dataset, and holds no
// state but the pending frame. Its text is put before each view's text: one ES module, without imports.

const MINUS = "\u2212", THIN = "\u2009", SVG = "http://www.w3.org/2000/svg";
const clamp = (v, lo, hi) => Math.min(Math.max(v, lo), hi);

/** An HTML element: `text` becomes textContent, functions listeners, null nothing, the rest attributes. */
function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key === "text") node.textContent = value;
    else if (typeof value === "function") node.addEventListener(key, value);
    else if (value != null) node.setAttribute(key, value);
  }
  node.append(...children);
  // JupyterLab takes keys from whatever has focus, unless that very element says this
  if (node.matches("button, select, [tabindex]")) node.dataset.lmSuppressShortcuts = "true";
  return node;
}

/** An SVG element inside `parent`. */
function shape(parent, tag, attributes = {}, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text != null) node.textContent = text;
  parent.append(node);
  return node;
}

const put = (node, text) => node.textContent === text || (node.textContent = text);

/** One animation frame for any number of events: returns `ask`, which runs `fn` once at the next frame. */
function frame(fn) {
  let pending = 0;
  const ask = () => (pending ||= requestAnimationFrame(() => ((pending = 0), fn())));
  ask.stop = () => cancelAnimationFrame(pending);
  return ask;
}

/** `fn` with the newest arguments, at most once in `ms`; the last call is never lost. */
function throttle(fn, ms) {
  let timer = 0, last = -Infinity;
  const run = () => ((timer = 0), (last = performance.now()), fn());
  const ask = () => (timer ||= setTimeout(run, Math.max(0, last + ms - performance.now())));
  ask.stop = () => clearTimeout(timer);
  return ask;
}

/** `fn` once nothing was asked for `ms`. */
function rest(fn, ms) {
  let timer = 0;
  const ask = () => (clearTimeout(timer), (timer = setTimeout(fn, ms)));
  ask.stop = () => clearTimeout(timer);
  return ask;
}

// ---- theme and colour

/** Sets the column of the token table by what JupyterLab shows, or else by what the reader prefers. */
function theme(el) {
  let dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (getComputedStyle(el).getPropertyValue("--jp-layout-color0").trim()) {
    const [r, g, b] = getComputedStyle(el).backgroundColor.match(/[\d.]+/g).map(Number);
    dark = 0.2126 * r + 0.7152 * g + 0.0722 * b < 128;
  }
  el.classList.toggle("tk-dark", dark);
  return dark ? "dark" : "light";
}

/** Calls `fn` whenever the theme may have changed; returns what stops it. */
function onTheme(fn) {
  const watch = new MutationObserver(fn), media = matchMedia("(prefers-color-scheme: dark)");
  const attributeFilter = ["data-jp-theme-name", "data-jp-theme-light", "class"];
  for (const node of [document.documentElement, document.body]) watch.observe(node, { attributeFilter });
  media.addEventListener("change", fn);
  return () => (watch.disconnect(), media.removeEventListener("change", fn));
}

/** 256 colours as canvas words (ABGR), from the stops in a token; or from 768 bytes r g b, if such are given. */
function lut(el, name, bytes) {
  const table = new Uint32Array(256), word = (r, g, b) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  if (bytes && bytes.length === 768) return table.map((_, i) => word(...bytes.subarray(3 * i, 3 * i + 3)));
  const stops = getComputedStyle(el).getPropertyValue(`--tk-${name}`).match(/[0-9a-f]{6}/gi);
  const rgb = stops.map((s) => [0, 2, 4].map((k) => parseInt(s.slice(k, k + 2), 16)));
  return table.map((_, i) => {
    const u = (i / 255) * (rgb.length - 1), k = Math.min(Math.floor(u), rgb.length - 2), t = u - k;
    return word(...[0, 1, 2].map((c) => Math.round(rgb[k][c] + t * (rgb[k + 1][c] - rgb[k][c]))));
  });
}

/** Colours of the codes 0..top, which stand for lo..hi, symmetric about 0. What is not finite stays clear. */
function tableOf(colours, lo, hi, limit, top) {
  const table = new Uint32Array(256);
  for (let c = 0; c <= top; c++) {
    const t = ((lo + (c * (hi - lo)) / top) / limit + 1) / 2;
    table[c] = colours[clamp(Math.round(t * 255), 0, 255)];
  }
  return table;
}

/** Codes through a table onto a canvas of the size of the data. */
function paint(canvas, codes, table) {
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < words.length; i++) words[i] = table[codes[i]];
  context.putImageData(image, 0, 0);
}

/** Numbers onto a canvas of their size, symmetric about 0. What is not finite stays clear. */
function paintValues(canvas, values, limit, colours) {
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const words = new Uint32Array(image.data.buffer), gain = 127.5 / limit;
  for (let i = 0; i < words.length; i++) {
    const v = values[i], n = Math.floor(v * gain + 128); // rounded
    if (v - v === 0) words[i] = colours[n < 0 ? 0 : n > 255 ? 255 : n];
  }
  context.putImageData(image, 0, 0);
}

// ---- numbers

const format = {
  minus: (text) => text.replaceAll("-", MINUS),
  fixed: (v, digits = 3) => {
    if (!Number.isFinite(v)) return Number.isNaN(v) ? "NaN" : v > 0 ? "+Inf" : `${MINUS}Inf`;
    return format.minus(v.toFixed(digits).replace(/^-(0\.?0*)$/, "$1"));
  },
  signed: (v, digits = 3) => (v > 0 && Number.isFinite(v) ? "+" : "") + format.fixed(v, digits),
  sigma: (v) => {
    if (v === 0) return "0";
    if (Math.abs(v) < 1e-3) return format.minus(v.toExponential(1));
    return format.minus(Math.abs(v) >= 0.1 && Math.abs(v) <= 10 ? v.toFixed(3) : v.toPrecision(4));
  },
  logSnr: (v) => (Number.isFinite(v) || Number.isNaN(v) ? format.signed(v) : v > 0 ? "+\u221e" : `${MINUS}\u221e`),
  spoken: (v) => (Number.isFinite(v) ? v.toFixed(3).replace("-", "minus ") : v > 0 ? "infinity" : "minus infinity"),
  count: (n) => (n >= 1e4 ? String(n).replace(/\B(?=(\d{3})+$)/g, THIN) : String(n)),
  limit: (v) => (v >= 100 ? v.toFixed(0) : v >= 0.01 ? v.toFixed(2) : v.toExponential(1).replace("-", MINUS)),
  tick: (v) => {
    const plain = v === 0 || (Math.abs(v) >= 1e-4 && Math.abs(v) < 1e5);
    return format.minus(plain ? String(+v.toPrecision(6)) : v.toExponential(0));
  },
  /** A size of an error, which rounding alone makes below 1e-15. */
  error: (v) => {
    if (!Number.isFinite(v)) return "NaN";
    if (v < 1e-15) return `< 1e${MINUS}15`;
    return format.minus(v >= 1e-3 ? String(+v.toPrecision(3)) : v.toExponential(1));
  },
  /** A decoded code with the digits that its step carries, three at most. */
  coded: (v, step) => format.signed(v, Number.isNaN(v) ? 0 : clamp(Math.ceil(-Math.log10(step || 1e-3)), 0, 3)),
};

// ---- scales and axes

/** About `wish` round numbers between lo and hi. */
function ticks(lo, hi, wish = 3) {
  const raw = (hi - lo) / wish || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= raw * 0.999) ?? 10), out = [];
  for (let v = Math.ceil(lo / step - 1e-9) * step; v <= hi + step * 1e-9; v += step) out.push(+v.toPrecision(9));
  return out.map((v) => (Math.abs(v) < step / 1e6 ? 0 : v));
}

/** Powers of ten between lo and hi, thinned to about `wish`; 1, 2, 5 where there is less than a decade and a half. */
function decades(lo, hi, wish = 4) {
  const first = Math.ceil(Math.log10(lo) - 1e-9), last = Math.floor(Math.log10(hi) + 1e-9), out = [];
  const step = Math.max(1, Math.ceil((last - first + 1) / wish));
  for (let k = first; k <= last; k += step) out.push(10 ** k);
  if (out.length > 1) return out;
  const fine = [1, 2, 5].flatMap((m) => [first - 1, first, last].map((k) => m * 10 ** k));
  return [...new Set(fine)].filter((v) => v >= lo * 0.999 && v <= hi * 1.001).sort((a, b) => a - b);
}

/** Functions value -> 0..1, each with its own `ticks`. */
const scale = {
  linear(lo, hi) {
    const f = (v) => (v - lo) / (hi - lo || 1);
    return Object.assign(f, { ticks: (wish) => ticks(lo, hi, wish) });
  },
  log(lo, hi) {
    const a = Math.log(lo), span = Math.log(hi) - a || 1;
    return Object.assign((v) => (Math.log(v) - a) / span, { ticks: (wish) => decades(lo, hi, wish) });
  },
  /** Log, with a slot of its own for 0 (a share of the length) below it. */
  symlog0(lo, hi, slot) {
    const log = scale.log(lo, hi);
    const f = (v) => (v > 0 ? slot + (1 - slot) * log(v) : 0);
    return Object.assign(f, { ticks: (wish) => (slot ? [0] : []).concat(log.ticks(wish)) });
  },
};

/** A scale that suits positive levels, of which some may be 0. */
function levelScale(values, slot) {
  const positive = values.filter((v) => v > 0 && Number.isFinite(v));
  if (!positive.length) return scale.linear(0, 1);
  const lo = Math.min(...positive), hi = Math.max(...positive);
  return scale.symlog0(lo, hi > lo ? hi : lo * 1.01, values.some((v) => v === 0) ? slot : 0);
}

/** Limits of a curve: linear, or log where a std spans most of a decade. */
function valueScale(values, log) {
  const real = values.filter(Number.isFinite), lo = Math.min(...real), hi = Math.max(...real), pad = (hi - lo) * 0.06;
  if (!real.length) return scale.linear(0, 1);
  if (log && hi > 8 * Math.min(...real.filter((v) => v > 0))) return levelScale(real, 0.15);
  return hi > lo ? scale.linear(lo - pad, hi + pad) : scale.linear(lo - 0.5, lo + 0.5);
}

/** Path through (x, y); broken wherever one of them is not finite. */
function curve(points) {
  let path = "", pen = "M";
  for (const [x, y] of points) {
    const ok = Number.isFinite(x) && Number.isFinite(y);
    if (ok) path += `${pen}${x.toFixed(2)} ${y.toFixed(2)}`;
    pen = ok ? "L" : "M";
  }
  return path;
}

/** Grid lines and labels of one plot; labels nearer than 11 px to the one before are left out. */
function axis(parent, plot, left, right, wish) {
  let last = Infinity;
  for (const value of plot.scale.ticks(wish)) {
    const y = plot.bottom - plot.scale(value) * (plot.bottom - plot.top);
    if (y < plot.top - 1 || y > plot.bottom + 1) continue;
    if (value !== 0 || !plot.level) shape(parent, "line", { class: "tk-gridline", x1: left, x2: right, y1: y, y2: y });
    if (last - y < 11) continue;
    shape(parent, "text", { x: left - 8, y: y + 3.5, "text-anchor": "end" }, format.tick(value));
    last = y;
  }
}

/** Places for labels of given heights: nearest to where they want to be, `gap` apart, within lo..hi. */
function spread(wanted, gap, lo, hi) {
  const order = wanted.map((y, i) => [y, i]).sort((a, b) => a[0] - b[0]), out = [];
  order.forEach(([y], k) => (out[k] = Math.max(y, k ? out[k - 1] + gap : lo)));
  for (let k = out.length - 1, top = hi; k >= 0; k--, top = out[k + 1] - gap) out[k] = Math.min(out[k], top);
  // a block pushed downwards sits half its shift too low: centre each run of touching labels
  for (let a = 0; a < out.length; ) {
    let b = a;
    while (b + 1 < out.length && out[b + 1] - out[b] < gap + 0.01) b++;
    const shift = order.slice(a, b + 1).reduce((s, [y], k) => s + y - out[a + k], 0) / (b - a + 1);
    const least = a ? out[a - 1] + gap - out[a] : lo - out[a], most = hi - out[b];
    for (let k = a; k <= b; k++) out[k] += clamp(shift, Math.min(least, 0), Math.max(most, 0));
    a = b + 1;
  }
  return order.reduce((places, [, i], k) => ((places[i] = out[k]), places), []);
}

// ---- the rail: a stack of plots that share x, one hairline through all of them

/** The hairline with its thumb, value dots and pill: built once, moved by attribute. */
function cursor(svg, plots, first, bottom) {
  const hair = shape(svg, "line", { class: "tk-hair", y1: first.top, y2: bottom });
  const dots = plots.flatMap((plot) => plot.lines.map((line) => ({
    plot, line, node: shape(svg, "circle", { class: `tk-value tk-cat${line.cat}`, r: 3.4 }),
  })));
  const thumb = shape(svg, "circle", { class: "tk-thumb", r: 8 });
  const pill = shape(svg, "rect", { class: "tk-pill", height: 18, rx: 9, y: bottom + 1 });
  const text = shape(svg, "text", { class: "tk-pill-text", y: bottom + 14, "text-anchor": "middle" });
  return { hair, dots, thumb, pill, text };
}

/**
 * Builds the rail in `host`. Options: width, left, right; u (position of each rung, 0..1), range [a, b] of u shown;
 * ticks [[u, text]], minor [u] and axisName; plots [{title, unit, top, bottom, scale, level, lines}], of which
 * the first carries the thumb, with lines [{values, cat, name, end}], `end` being the value that the name stands at,
 * where the last is none; letters of a name (4); focused (name of a line); faults (rungs);
 * end (u where a stopped run ends); plan [[u, level]] of rungs to come; newest (rung) of a run
 * that goes on; say(k), the words in the pill. A plot with draw(svg, plot, px, right) draws itself. Returns
 * {at(clientX), move(k)}; `move` answers whether that rung lies in the range shown.
 */
function rail(host, o) {
  const { left, right, u, range: [a, b], plots } = o, inner = o.width - left - right, end = o.width - right;
  const px = (v) => left + ((v - a) / (b - a)) * inner, xs = u.map(px);
  const bottom = plots.at(-1).bottom + 8, height = bottom + 24;
  const shown = u.map((v, k) => k).filter((k) => u[k] >= a - 1e-9 && u[k] <= b + 1e-9);
  const order = [...shown].sort((i, j) => u[i] - u[j]), lastShown = order.at(-1);
  const old = host.querySelector("svg");
  const svg = shape(host, "svg", { width: o.width, height, "aria-hidden": "true" });
  if (old) old.remove();
  const clip = (top, foot, x, width) => { // a nested svg clips, and needs no id
    const box = shape(svg, "svg", { x, y: top, width, height: foot - top });
    return shape(box, "g", { transform: `translate(${-x} ${-top})` });
  };
  let past; // the darker part of the area, up to the thumb
  const titles = [];
  for (const plot of plots) {
    plot.y = (v) => plot.bottom - plot.scale(v) * (plot.bottom - plot.top);
    const name = shape(svg, "text", { class: "tk-plot-title", x: left, y: plot.top - 14 });
    shape(name, "tspan", {}, plot.title);
    name.append(` ${plot.unit}`);
    titles.push(name);
    if (plot.draw) { plot.draw(svg, plot, px, end); continue; }
    axis(svg, plot, left, end, plot.wish ?? 2);
    if (plot.level) past = clip(plot.top, plot.bottom, left, 0);
    const box = clip(plot.top - 12, plot.bottom + 12, left - 8, inner + 16);
    if (plot.level) railSchedule(past, box, plot, o, xs, px);
    else railLines(svg, box, plot, o, xs, lastShown);
  }
  railTicks(svg, o, px, bottom, end);
  const { hair, dots, thumb, pill, text } = cursor(svg, plots.filter((p) => !p.level && !p.draw), plots[0], bottom);
  if (order.includes(o.newest)) {
    const place = { cx: xs[o.newest], cy: plots[0].y(plots[0].lines[0].values[o.newest]) };
    thumb.before(shape(svg, "circle", { class: "tk-halo", r: 13, ...place }));
  }
  const moved = [hair, thumb, pill, text, ...dots.map((dot) => dot.node)];
  if (!u.length) for (const node of moved) node.classList.add("tk-gone");
  svg.append(...titles); // over the hairline, with a halo of paper
  const labels = [...svg.querySelectorAll(".tk-tick-text")];
  return {
    at(clientX) {
      const x = clientX - svg.getBoundingClientRect().left;
      return shown.reduce((best, k) => (Math.abs(xs[k] - x) < Math.abs(xs[best] - x) ? k : best), shown[0]);
    },
    move(k) {
      const x = xs[k], off = !shown.includes(k), y = plots[0].y(plots[0].lines[0].values[k]);
      for (const node of [hair, thumb, pill, text]) node.classList.toggle("tk-gone", off);
      hair.setAttribute("x1", x), hair.setAttribute("x2", x), hair.setAttribute("y1", y);
      thumb.setAttribute("cx", x), thumb.setAttribute("cy", y);
      past?.parentNode.setAttribute("width", clamp(x - left, 0, inner));
      for (const dot of dots) {
        const value = dot.plot.y(dot.line.values[k]), gone = off || !Number.isFinite(value);
        dot.node.classList.toggle("tk-gone", gone);
        if (!gone) dot.node.setAttribute("cx", x), dot.node.setAttribute("cy", value);
      }
      put(text, o.say(k));
      const half = Math.max(14, text.textContent.length * 3.4 + 7), middle = clamp(x, half, o.width - half);
      text.setAttribute("x", middle), pill.setAttribute("x", middle - half), pill.setAttribute("width", 2 * half);
      for (const node of labels) {
        const gap = Math.abs(+node.getAttribute("x") - x);
        node.classList.toggle("tk-gone", !off && gap < half + 4 + node.textContent.length * 3.2);
      }
      return !off;
    },
  };
}

/** The schedule itself: area (darker up to the thumb), line, dots, what was not recorded, rungs with faults. */
function railSchedule(past, box, plot, o, xs, px) {
  const values = plot.lines[0].values, points = values.map((v, k) => [xs[k], plot.y(v)]);
  const solid = points.filter((_, k) => values[k] > 0);
  const area = solid.length ? `${curve(solid)}L${solid.at(-1)[0]} ${plot.bottom}L${solid[0][0]} ${plot.bottom}Z` : "";
  shape(box, "path", { class: "tk-area", d: area });
  shape(past, "path", { class: "tk-area-past", d: area });
  if (o.end != null) {
    const x = px(o.end), width = Math.max(0, px(1) - x);
    shape(box, "rect", { class: "tk-unrecorded", x, width, y: plot.top - 4, height: plot.bottom - plot.top + 4 });
    shape(box, "line", { class: "tk-stopped", x1: x, x2: x, y1: plot.top - 4, y2: plot.bottom });
  }
  const come = [...points.slice(-1), ...(o.plan ?? []).map(([u, v]) => [px(u), plot.y(v)])];
  if (o.plan?.length) shape(box, "path", { class: "tk-schedule tk-planned", d: curve(come) });
  values.forEach((v, k) => { // level 0 is not on the log axis: joined by dots
    const joins = k && (v === 0) !== (values[k - 1] === 0);
    if (joins) shape(box, "path", { class: "tk-schedule tk-joined", d: curve([points[k - 1], points[k]]) });
  });
  shape(box, "path", { class: "tk-schedule", d: curve(points.map((p, k) => (values[k] > 0 ? p : [NaN, NaN]))) });
  const crowded = xs.length > 1 && Math.abs(xs.at(-1) - xs[0]) / (xs.length - 1) < 5;
  points.forEach(([x, y], k) => {
    if (o.faults.includes(k)) shape(box, "path", { class: "tk-fault", d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8` });
    else if (!crowded || values[k] === 0) shape(box, "circle", { class: "tk-dot", cx: x, cy: y, r: 1.9 });
  });
}

/** Lines of a small multiple, each named at its end; `all` where the ends cannot be told apart. */
function railLines(svg, box, plot, o, xs, last) {
  for (const line of plot.lines) {
    const focused = o.focused === line.name ? " tk-focused" : "";
    const d = curve(line.values.map((v, k) => [xs[k], plot.y(v)]));
    shape(box, "path", { class: `tk-line tk-cat${line.cat}${focused} ${line.kind ?? ""}`, d });
  }
  const end = (l) => l.end ?? l.values[last];
  const named = plot.lines.filter((l) => (l.cat !== "x" || l.name === o.focused) && Number.isFinite(end(l)));
  const ends = named.map((l) => plot.y(end(l))), same = Math.max(...ends) - Math.min(...ends) < 4;
  const x = xs[last] + 8;
  if (named.length > 1 && same) {
    shape(svg, "text", { x, y: ends[0] + 3.5 }, "all");
  } else {
    spread(ends, 11.5, plot.top - 6, plot.bottom + 6).forEach((y, i) => {
      const { cat, name } = named[i], focused = cat === "x" ? " tk-focused" : "";
      shape(svg, "text", { class: `tk-named tk-cat${cat}${focused}`, x, y: y + 3.5 }, name.slice(0, o.letters ?? 4));
    });
  }
}

/** The shared x axis: a tick for each rung where there is room, labels at round ones. */
function railTicks(svg, o, px, bottom, end) {
  let lastX = -Infinity;
  for (const v of [...o.minor].sort((p, q) => p - q)) {
    const x = px(v);
    if (x - lastX < 3 || x < o.left - 1 || x > end + 1) continue;
    shape(svg, "line", { class: "tk-tick", x1: x, x2: x, y1: bottom - 5, y2: bottom - 2 });
    lastX = x;
  }
  for (const [v, text] of o.ticks) {
    const x = px(v);
    if (x < o.left - 1 || x > end + 1) continue;
    shape(svg, "line", { class: "tk-tick", x1: x, x2: x, y1: bottom - 5, y2: bottom });
    shape(svg, "text", { class: "tk-tick-text", x, y: bottom + 14, "text-anchor": "middle" }, text);
  }
  shape(svg, "text", { class: "tk-tick-text", x: o.left - 19, y: bottom + 14, "text-anchor": "middle" }, o.axisName);
}

/**
 * Rows of ticks between px(0) and `right`, rows [{name, cat, y: [top, bottom], xs, faults: [x]}], and thin links from
 * the first row to the second, [[x above, x below]].
 */
function tickRows(svg, px, right, rows, links) {
  const [[top], [foot]] = [rows[0].y, rows[1].y], low = rows[1].y[1];
  shape(svg, "rect", { class: "tk-area", x: px(0), y: top - 6, width: right - px(0), height: low - top + 12, rx: 3 });
  const joined = links.map(([x0, x1]) => `M${x0.toFixed(1)} ${rows[0].y[1] + 2}L${x1.toFixed(1)} ${foot - 2}`);
  shape(svg, "path", { class: "tk-link", d: joined.join("") });
  for (const { name, cat, y, xs, faults } of rows) {
    const group = shape(svg, "g", { class: `tk-cat${cat}` }), middle = (y[0] + y[1]) / 2;
    shape(group, "text", { class: "tk-named tk-letter", x: px(0) - 12, y: middle + 4, "text-anchor": "end" }, name);
    const d = xs.map((x) => `M${x.toFixed(1)} ${y[0]}V${y[1]}`).join("");
    shape(group, "path", { class: `tk-rungs${xs.length > 80 ? " tk-many" : ""}`, d });
    for (const x of faults) shape(svg, "path", { class: "tk-fault", d: `M${x - 4} ${middle - 4}l8 8m0 -8l-8 8` });
  }
}

// ---- tiles, colour bar

/** A canvas in a frame, with a badge and the mark of the pixel under the pointer. */
function tile(width, height, name, cat) {
  const canvas = make("canvas", { width, height }), mark = make("div", { class: "tk-mark", hidden: "" });
  const node = make("div", { class: "tk-tile", role: "img" }, canvas, mark);
  if (name) node.append(make("span", { class: `tk-badge tk-cat${cat}`, text: name }));
  return { node, canvas, mark };
}

/** Tiles of width x height data pixels in `columns` columns. `fit(space)` gives them their size on screen. */
function tiles(names, cats, width, height, columns) {
  const list = names.map((name, i) => tile(width, height, name, cats[i]));
  const node = make("div", { class: "tk-tiles" }, ...list.map((t) => t.node));
  const fit = (space) => {
    const box = (space - 4 * (columns - 1)) / columns, ratio = devicePixelRatio || 1;
    const free = box / Math.max(width, height), whole = Math.floor(free * ratio) / ratio;
    const factor = whole >= 0.96 * free ? whole : free; // whole device pixels where that costs little room
    for (const t of list) t.node.style.width = `${width * factor}px`, (t.node.style.height = `${height * factor}px`);
    node.style.width = `${columns * width * factor + 4 * (columns - 1) + 0.5}px`;
    return columns * width * factor + 4 * (columns - 1);
  };
  return { node, list, fit, width, height };
}

/** Small pictures inside `bytes`, decoded when asked for, the newest kept; entries [k, s, offset, length, ...]. */
function gallery(bytes, keep = 64) {
  const ready = new Map(), wanted = new WeakMap();
  const decoded = ([, , offset, length]) => {
    const picture = ready.get(offset) ?? createImageBitmap(new Blob([bytes.subarray(offset, offset + length)]));
    ready.delete(offset), ready.set(offset, picture);
    if (ready.size > keep) ready.delete(ready.keys().next().value);
    return picture;
  };
  /** Puts the first entry on a canvas, and decodes eight ahead; what is there stays until the new one is ready. */
  return (canvas, entries) => {
    const [first] = entries;
    wanted.set(canvas, first);
    if (!first) return; // something else is drawn there
    decoded(first).then((bitmap) => {
      if (wanted.get(canvas) !== first) return;
      canvas.width = bitmap.width, canvas.height = bitmap.height;
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
    });
    entries.slice(1, 9).forEach(decoded);
  };
}

/** Marks pixel (y, x) of a grid of rows x columns in a tile, or none. */
function markPixel(t, pixel, rows, columns) {
  t.mark.hidden = !pixel;
  if (!pixel) return;
  const w = parseFloat(t.node.style.width), h = parseFloat(t.node.style.height);
  const side = [Math.max(8, w / columns + 3), Math.max(8, h / rows + 3)];
  t.mark.style.width = `${side[0]}px`;
  t.mark.style.height = `${side[1]}px`;
  t.mark.style.left = `${((pixel[1] + 0.5) * w) / columns - side[0] / 2}px`;
  t.mark.style.top = `${((pixel[0] + 0.5) * h) / rows - side[1] / 2}px`;
}

/** A colour bar with its two limits and 0 under it. */
function colourbar() {
  const canvas = make("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const low = make("span"), high = make("span"), middle = make("span", { text: "0" });
  const node = make("div", { class: "tk-scale" }, canvas, make("div", {}, low, middle, high));
  const codes = Uint8Array.from({ length: 256 }, (_, i) => i);
  const set = (limit) => (put(low, `${MINUS}${format.limit(limit)}`), put(high, `+${format.limit(limit)}`));
  return { node, set, colour: (table) => paint(canvas, codes, table) };
}

// ---- controls

/** A row of choices, of which one holds: options [[value, text]]. */
function segment(label, options, choose) {
  const node = make("div", { class: "tk-segment", role: "radiogroup", "aria-label": label });
  const button = ([value, text]) => make("button", { type: "button", role: "radio", text, click: () => choose(value) });
  const buttons = options.map(button), hops = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
  node.append(...buttons);
  node.addEventListener("keydown", (event) => {
    const hop = hops[event.key], i = buttons.indexOf(event.target);
    if (!hop || i < 0) return;
    const next = (i + hop + buttons.length) % buttons.length;
    choose(options[next][0]), buttons[next].focus(), event.preventDefault(), event.stopPropagation();
  });
  const set = (value) => buttons.forEach((button, i) => {
    button.setAttribute("aria-checked", String(options[i][0] === value));
    button.tabIndex = options[i][0] === value ? 0 : -1;
  });
  return { node, set };
}

/** A native select with a name: texts of the choices, by index. */
function choice(label, texts, choose) {
  const select = make("select", { "aria-label": label, change: () => choose(+select.value) },
    ...texts.map((text, i) => make("option", { value: i, text: `${text} \u25be` })));
  return { node: make("label", { class: "tk-pick" }, label, select), set: (i) => (select.value = i) };
}

/** Title, picture and what belongs under it, of one width. Its parts can be reached by name. */
function stand(name, grid, under) {
  const second = make("span", { class: "tk-second" }), note = make("span", { class: "tk-second" });
  const bold = make("b", { text: name[0].toUpperCase() + name.slice(1) });
  const title = make("div", { class: "tk-caption" }, bold, second, note);
  const node = make("div", { class: `tk-column tk-column-${name}` }, title, grid.node, under);
  const fit = (space, most, narrow) => {
    const filled = grid.fit(Math.min(space, most));
    node.style.width = `${narrow ? filled : space}px`;
    title.style.width = under.style.width = `${filled}px`;
  };
  return { name, node, grid, second, note, fit };
}

/** A drawn button: `d` is the path of a 12 x 12 picture. */
function icon(label, d, click, name = "") {
  const node = make("button", { type: "button", class: name, "aria-label": label, click });
  const box = shape(node, "svg", { width: 12, height: 12, viewBox: "0 0 12 12", "aria-hidden": "true" });
  const path = shape(box, "path", { d });
  return { node, set: (other, text) => (path.setAttribute("d", other), node.setAttribute("aria-label", text)) };
}

/** First, back, play, on, last. `go(hop)` moves, `atEnd(hop)` says whether there is nowhere to go; 12 hops a second. */
function player(go, atEnd) {
  const PLAY = "M2.5 1 10.5 6 2.5 11Z", PAUSE = "M2 1h3v10h-3ZM7 1h3v10h-3Z";
  let timer = 0;
  const stop = () => (clearInterval(timer), (timer = 0), play.set(PLAY, "play"));
  const toggle = (hop) => {
    if (timer) return stop();
    if (atEnd(hop)) go(-hop * Infinity);
    play.set(PAUSE, "pause");
    timer = setInterval(() => (go(hop), atEnd(hop) && stop()), 1000 / 12);
  };
  const by = (hop) => () => (stop(), go(hop)), play = icon("play", PLAY, () => toggle(1), "tk-play");
  const node = make("div", { class: "tk-player" },
    icon("first rung", "M1 1h2v10h-2ZM11 1 4 6 11 11Z", by(-Infinity), "tk-wide").node,
    icon("previous rung", "M9 1 2 6 9 11Z", by(-1)).node, play.node, icon("next rung", "M3 1 10 6 3 11Z", by(1)).node,
    icon("last rung", "M9 1h2v10h-2ZM1 1 8 6 1 11Z", by(Infinity), "tk-wide").node);
  return { node, stop, toggle, playing: () => timer > 0 };
}

/** The figures of one rung: a large level, facts [[name, wideOnly]], and a table of mean and std with `count` rows. */
function figures(label, facts, count) {
  const level = make("output"), list = make("dl", { class: "tk-facts" }), rows = [];
  const table = make("table", { class: "tk-moments tk-wide" });
  const values = facts.map(([name, wideOnly]) => {
    const value = make("dd");
    list.append(make("div", { class: wideOnly ? "tk-wide" : "" }, make("dt", { text: name }), value));
    return value;
  });
  table.append(make("tr", {}, make("th"), make("th", { text: "mean" }), make("th", { text: "std" })));
  for (let i = 0; i < count; i++) {
    rows.push({ name: make("th"), mean: make("td"), std: make("td") });
    table.append(make("tr", {}, rows[i].name, rows[i].mean, rows[i].std));
  }
  const node = make("div", { class: "tk-figures" }, make("div", { class: "tk-level" }, label, level), list, table);
  return {
    node,
    set(text, said, moments) {
      put(level, text), said.forEach((word, i) => put(values[i], word));
      moments.forEach(({ name, cat, mean, std }, i) => {
        put(rows[i].name, name), (rows[i].name.className = `tk-named tk-cat${cat}`);
        put(rows[i].mean, format.signed(mean)), put(rows[i].std, format.fixed(std));
      });
    },
  };
}

// ---- hands

/** Drag, pinch, double click, wheel: act {to(x), hop(n), zoom(x, factor), over(x or null), whole()}, x = clientX. */
function gestures(el, slider, act) {
  const down = new Map(); // pointers on the rail: two of them pinch
  let wheel = 0;
  el.addEventListener("mousedown", (event) => { // a click on a tile gives the rail the keys, and no ring
    if (event.target.closest("button, select, label") || slider.contains(event.target)) return;
    slider.focus({ preventScroll: true, focusVisible: false }), event.preventDefault();
  });
  slider.addEventListener("pointerdown", (event) => {
    down.set(event.pointerId, event.clientX), slider.setPointerCapture(event.pointerId);
    if (down.size === 1 && event.button === 0) act.to(event.clientX);
  });
  slider.addEventListener("pointermove", (event) => {
    const x = event.clientX, held = down.has(event.pointerId);
    const other = [...down].find(([id]) => id !== event.pointerId)?.[1];
    act.over(held ? null : x);
    if (held && other != null) {
      const before = Math.abs(down.get(event.pointerId) - other), after = Math.abs(x - other);
      if (after > 8) act.zoom((x + other) / 2, before / after);
      down.set(event.pointerId, x);
    } else if (held) act.to(x);
  });
  const released = (event) => down.delete(event.pointerId);
  slider.addEventListener("pointerup", released), slider.addEventListener("pointercancel", released);
  slider.addEventListener("pointerleave", () => act.over(null));
  slider.addEventListener("dblclick", act.whole);
  el.addEventListener("wheel", (event) => { // only a view that has focus: the page's scroll is not ours to take
    if (!el.contains(document.activeElement)) return;
    event.preventDefault();
    const far = Math.abs(event.deltaY) > Math.abs(event.deltaX) ? event.deltaY : event.deltaX;
    const delta = far * [1, 33, 400][event.deltaMode]; // pixels, lines, pages
    if (event.ctrlKey) return slider.contains(event.target) && act.zoom(event.clientX, 1.0015 ** delta);
    wheel += delta;
    if (Math.abs(wheel) >= 50) act.hop(Math.sign(wheel)), (wheel = 0); // one notch of a mouse, or as much of a pad
  }, { passive: false });
}

/** The pixel under a pointer, of a grid of rows x columns. */
function pixelAt(event, node, rows, columns) {
  const box = node.getBoundingClientRect(), part = (v, size, n) => clamp(Math.floor((v / size) * n), 0, n - 1);
  return { y: part(event.clientY - box.top, box.height, rows), x: part(event.clientX - box.left, box.width, columns) };
}

/** Keys of a view: map {"ArrowLeft": fn, "Shift+ArrowLeft": fn, "digit": fn(n), "l": fn}. Others pass on. */
function keys(el, map) {
  el.addEventListener("keydown", (event) => {
    const typed = "[]".includes(event.key) && (event.altKey || event.getModifierState("AltGraph")); // many keyboards
    if (!typed && (event.ctrlKey || event.metaKey || event.altKey)) return;
    if (event.target.matches("select, input, textarea")) return;
    if (event.key === " " && event.target.matches("button")) return; // the button's own key
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const digit = map.digit && /^\d$/.test(key), fn = (event.shiftKey && map[`Shift+${key}`]) || map[key];
    if (digit ? map.digit(+key) !== false : fn && fn() !== false) event.preventDefault(), event.stopPropagation();
  });
}

/** Key caps with what they do, in words. */
function hints(list) {
  return list.map(([caps, text]) => make("span", {}, ...caps.map((cap) => make("kbd", { text: cap })), text));
}

// ---- payload

/** A DataView (of a kernel) or a typed array (of a page), as bytes. */
const asBytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

/**
 * Adds `weight` times what codes stand for to `out`; `rest`, from `from` on, is a second byte of each, if there is one.
 * Answers what a value may be off by.
 */
function addCodes(out, codes, [lo, hi], top, weight, rest, from) {
  const step = (weight * (hi - lo)) / top, fine = rest.length > 0, part = step / 254, base = weight * lo - step / 2;
  for (let i = 0; i < out.length; i++) {
    const code = codes[i];
    out[i] += code > top ? NaN : base + code * step + (fine ? rest[from + i] * part : step / 2);
  }
  return step / (fine ? 508 : 2);
}

/** Numbers by name, of bytes that hold float32 and an index [[name, size]] of them. */
function tablesOf(bytes, index) {
  const floats = new Float32Array(bytes.slice().buffer), table = {};
  let start = 0;
  for (const [name, size] of index) table[name] = floats.subarray(start, (start += size));
  return table;
}

/** Bytes of a payload as typed arrays, with the numbers of any (rung, sample, channel) within reach. */
function unpack(meta, blob) {
  const [R, S, C, H, W] = meta.shape, table = tablesOf(blob("floats"), meta.floats);
  const codes = { latent: blob("latent"), denoised: blob("denoised") }, cell = (k, s, c) => (k * S + s) * C + c;
  const numbers = ["sigma", "timestep", "log_snr", "nfe"].map((name) => [name, meta[name]?.map(Number)]);
  return { ...meta, ...Object.fromEntries(numbers), R, S, C, H, W, codes,
    names: Array.from({ length: C }, (_, c) => meta.channels[c] ?? `c${c}`),
    value: (name, k, s, c) => table[name][cell(k, s, c)],
    limit: (name, k, s) => table[`${name}.limit`][k * S + s],
    most: (name, s) => Math.max(...meta.rungs.map((_, k) => table[`${name}.limit`][k * S + s])),
    plane: (name, k, s, c) => codes[name].subarray(cell(k, s, c) * H * W, (cell(k, s, c) + 1) * H * W),
    read(name, k, s, c, y, x) { // value of a pixel, and the step between two codes
      const [lo, hi] = ["lo", "hi"].map((end) => table[`${name}.${end}`][cell(k, s, c)]), step = (hi - lo) / meta.top;
      const code = codes[name][(cell(k, s, c) * H + y) * W + x];
      return [code > meta.top ? NaN : lo + code * step, step];
    },
    near(kind, k, s) { // pictures of a sample, the nearest rung first
      const own = meta.pictures[kind].filter((p) => p[1] === s);
      return own.sort((p, q) => Math.abs(p[0] - k) - Math.abs(q[0] - k));
    },
    nearest: (rung) => meta.rungs.reduce((b, r, k) => (Math.abs(r - rung) < Math.abs(meta.rungs[b] - rung) ? k : b), 0),
  };
}

// ---- one state of the values against another: distributions, dumbbells, a divided picture

/**
 * Density of v * gain + offset over bins between `edges`, v being what the codes stand for. Each code is spread over
 * its step: counted whole, codes and bins would beat against each other. What is not finite is left out.
 */
function density(codes, top, lo, hi, [gain, offset], edges) {
  const counts = new Float64Array(256), below = new Float64Array(top + 2), step = (hi - lo) / top || 1e-9;
  for (const code of codes) counts[code]++;
  for (let c = 0; c <= top; c++) below[c + 1] = below[c] + counts[c];
  const total = below[top + 1];
  const share = edges.map((edge) => {
    const u = clamp(((edge - offset) / gain - lo) / step + 0.5, 0, top + 1), c = Math.min(Math.floor(u), top);
    return (below[c] + (u - c) * counts[c]) / total;
  });
  return edges.slice(1).map((edge, i) => (share[i + 1] - share[i]) / (edge - edges[i]));
}

/** Distribution over `edges`: `on` filled, `off` outlined, N(0, 1) dashed: set({off, on, most, text, warn, label}). */
function histogram({ width, edges, name, cat }) {
  const node = make("div", { class: `tk-plot tk-cat${cat}`, role: "img" }), top = 22, bottom = 114;
  const svg = shape(node, "svg", { width, height: bottom + 22, "aria-hidden": "true" });
  const [first, last] = [edges[0], edges.at(-1)], x = (v) => ((v - first) / (last - first)) * width;
  const filled = shape(svg, "path", { class: "tk-filled" }), line = shape(svg, "path", { class: "tk-outline" });
  const normal = shape(svg, "path", { class: "tk-dashed" });
  shape(svg, "line", { class: "tk-tick", x1: 0, x2: width, y1: bottom, y2: bottom });
  for (const v of ticks(first, last, 5).filter((v) => x(v) > 8 && x(v) < width - 8))
    shape(svg, "text", { x: x(v), y: bottom + 15, "text-anchor": "middle" }, format.tick(v));
  shape(svg, "text", { class: "tk-named", x: 0, y: 12 }, name);
  const words = shape(svg, "text", { x: width, y: 12, "text-anchor": "end" });
  return { node, set({ off, on, most, text, warn, label }) {
    const y = (d) => bottom - Math.min(d / most, 1) * (bottom - top);
    const stairs = (bins) => bins.flatMap((d, i) => [[x(edges[i]), y(d)], [x(edges[i + 1]), y(d)]]);
    const ends = [[0, bottom]], area = Number.isFinite(on[0]) ? [...ends, ...stairs(on), [width, bottom]] : [];
    const bell = edges.map((v) => [x(v), y(Math.exp((-v * v) / 2) / Math.sqrt(2 * Math.PI))]);
    filled.setAttribute("d", curve(area)), line.setAttribute("d", curve(stairs(off)));
    normal.setAttribute("d", curve(bell)), put(words, text), words.classList.toggle("tk-risen", warn);
    node.setAttribute("aria-label", label);
  } };
}

/**
 * Rows of pairs, one column of them a quantity: hollow for the first, filled for the second, a dashed line at the
 * target, both in words at the right. columns [{title, target, lo, hi, say(v)}]; set(rows of columns of [off, on]).
 */
function dumbbells({ width, names, cats, columns }) {
  const ROW = 28, top = 30, words = 88, left = 34, gap = 18, foot = top + ROW * names.length;
  const room = (width - left - gap * (columns.length - 1)) / columns.length;
  const svg = shape(make("div", { class: "tk-plot" }), "svg", { width, height: foot + 20, "aria-hidden": "true" });
  const spans = columns.map(({ title, target, lo, hi }, j) => {
    const start = left + j * (room + gap), span = room - words, f = scale.linear(lo, hi);
    const x = (v) => start + 6 + clamp(f(v), 0, 1) * (span - 12);
    shape(svg, "text", { class: "tk-plot-title", x: start, y: 12 }, title);
    shape(svg, "line", { class: "tk-dashed", x1: x(target), x2: x(target), y1: top - 10, y2: foot - 4 });
    const said = []; // the target first: it is never left out
    for (const v of [target, ...ticks(lo, hi, 4)]) {
      if (said.some((other) => Math.abs(x(other) - x(v)) < 30)) continue;
      shape(svg, "text", { x: x(v), y: foot + 14, "text-anchor": "middle" }, format.tick(v)), said.push(v);
    }
    return { x, end: start + room };
  });
  const rows = names.map((name, i) => {
    const y = top + ROW * (i + 0.5) - 4, group = shape(svg, "g", { class: `tk-cat${cats[i]}` });
    shape(group, "text", { class: "tk-named", x: 0, y: y + 4 }, name.slice(0, 5));
    return columns.map((_, j) => ({ bar: shape(group, "line", { class: "tk-bar", y1: y, y2: y }),
      off: shape(group, "circle", { class: "tk-hollow", cy: y, r: 4.6 }),
      on: shape(group, "circle", { class: "tk-full", cy: y, r: 4.6 }),
      text: shape(group, "text", { x: spans[j].end, y: y + 4, "text-anchor": "end" }) }));
  });
  return { node: svg.parentNode, set: (values) => rows.forEach((row, i) => row.forEach((cell, j) => {
    const pair = values[i][j], [off, on] = pair.map(spans[j].x), known = pair.map(Number.isFinite);
    const both = known[0] && known[1];
    cell.bar.setAttribute("x1", both ? off : 0), cell.bar.setAttribute("x2", both ? on : 0);
    cell.off.setAttribute("cx", known[0] ? off : 0), cell.on.setAttribute("cx", known[1] ? on : 0);
    cell.off.classList.toggle("tk-gone", !known[0]), cell.on.classList.toggle("tk-gone", !known[1]);
    put(cell.text, pair.map(columns[j].say).join(" \u2192 "));
  })) };
}

/** A divider over `host` with a grip: dragged, or moved by keys, it calls act(share of width); move(share) puts it. */
function splitter(host, label, act) {
  const grip = make("button", { type: "button", role: "slider", class: "tk-grip", "aria-label": label,
    "aria-valuemin": 0, "aria-valuemax": 100 });
  const arrows = shape(grip, "svg", { width: 18, height: 12, viewBox: "0 0 18 12", "aria-hidden": "true" });
  shape(arrows, "path", { d: "M7 1v10L1 6ZM11 1v10L17 6Z" });
  const node = make("div", { class: "tk-divider" }, grip);
  let from = null, at = 0.5;
  const steps = { ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05, Home: -1, End: 1 };
  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = event.clientX - at * host.getBoundingClientRect().width, node.setPointerCapture(event.pointerId);
  });
  node.addEventListener("pointermove", (event) => {
    if (from != null) act(clamp((event.clientX - from) / host.getBoundingClientRect().width, 0, 1));
  });
  for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => (from = null));
  node.addEventListener("click", (event) => event.stopPropagation()); // a drag is no click on the picture
  node.addEventListener("dblclick", () => act(0.5));
  grip.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    act(clamp(at + steps[event.key], 0, 1)), event.preventDefault(), event.stopPropagation();
  });
  host.append(node);
  return { node, move(share) {
    at = share, node.style.left = `${100 * share}%`, grip.setAttribute("aria-valuenow", Math.round(100 * share));
  } };
}

/** A line over a part of a view: bold, what it is about, and a note at the right. */
function caption(text) {
  const bold = make("b", { text }), second = make("span"), note = make("span", { class: "tk-second" });
  return { node: make("div", { class: "tk-caption" }, bold, second, note), bold, second, note };
}

/** What the marks of a plot stand for: kinds [[class of the mark, text]]; set(i, text). */
function legend(kinds) {
  const texts = kinds.map(([, text]) => make("span", { text }));
  const node = make("div", { class: "tk-legend" }, ...kinds.map(([kind], i) => {
    const item = make("span");
    const svg = shape(item, "svg", { width: 22, height: 10, "aria-hidden": "true" });
    shape(svg, "path", { class: kind, d: kind === "tk-filled" ? "M3 0H19V10H3Z" : "M0 5H22" });
    item.append(texts[i]);
    return item;
  }));
  return { node, set: (i, text) => put(texts[i], text) };
}

/** The pixel under the pointer in tile `t` of rows x columns: look(place or null), and choose(place) for a click. */
function probed(t, rows, columns, look, choose) {
  const at = (event) => pixelAt(event, t.node, rows, columns);
  for (const kind of ["pointerdown", "pointermove"]) t.node.addEventListener(kind, (event) => look(at(event)));
  t.node.addEventListener("pointerleave", () => look(null));
  t.node.addEventListener("click", (event) => choose(at(event)));
}

/** Calls turn(true or false) in turn, less than twice a second; never where motion is not wanted. */
function blinker(turn) {
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let timer = 0, on = true;
  const stop = () => clearInterval(timer), hold = (value) => (stop(), turn((on = value)));
  return { stop, hold, start() {
    hold(true);
    if (!still.matches) timer = setInterval(() => turn((on = !on)), 600);
  } };
}

// ---- sliders, marks and single plots, as the schedule explorer has them

/** The nearest of 1, 2, 5 times a power of ten that is not above v: a limit that stays while v moves a little. */
function below(v) {
  const power = 10 ** Math.floor(Math.log10(v) + 1e-9);
  return [5, 2, 1].find((m) => m * power <= v * 1.000001) * power || power;
}

/** The mark of a category of radius about r, a path from its middle: its shape tells it apart without colour. */
function markShape(cat, r) {
  const by = (dx, dy) => `${+(dx * r).toFixed(2)} ${+(dy * r).toFixed(2)}`;
  const through = (first, ...turns) => `m${by(...first)}${turns.map((turn) => `l${by(...turn)}`).join("")}z`;
  if (cat === 1) return through([-0.9, -0.9], [1.8, 0], [0, 1.8], [-1.8, 0]);
  if (cat === 2) return through([0, -1.2], [1.15, 2.1], [-2.3, 0]);
  if (cat === 3) return through([0, -1.35], [1.35, 1.35], [-1.35, 1.35], [-1.35, -1.35]);
  if (cat === 4) return through([0, 1.2], [1.15, -2.1], [-2.3, 0]);
  if (cat === 5) return through([-1.5, -0.6], [3, 0], [0, 1.2], [-3, 0]);
  return `m${by(-1, 0)}a${r} ${r} 0 1 0 ${by(2, 0)}a${r} ${r} 0 1 0 ${by(-2, 0)}z`;
}

/** That mark at (x, y). */
const mark = (cat, x, y, r) => `M${x.toFixed(2)} ${y.toFixed(2)}${markShape(cat, r)}`;

/**
 * A native slider with its name and its value: spec {name, label, low, high, hop, value}, of which `value` is the
 * default, and hop 0 means even in the logarithm; `say(v)` writes it, where it has a unit. `change(v)` hears every
 * move; a double click gives the default.
 */
function dial(spec, change) {
  const { low, high, hop, value } = spec, count = hop ? Math.round((high - low) / hop) : 240;
  const digits = hop ? (String(hop).split(".")[1] ?? "").length : 0;
  const even = (p) => +(low * (high / low) ** (p / count)).toPrecision(3);
  const at = (p) => (hop ? +(low + p * hop).toFixed(digits) : p <= 0 ? low : p >= count ? high : even(p));
  const place = (v) => (hop ? (v - low) / hop : (count * Math.log(v / low)) / Math.log(high / low));
  const input = make("input", { type: "range", min: 0, max: count, step: 1, "aria-label": spec.name,
    "data-lm-suppress-shortcuts": "true", input: () => change(at(+input.value)), dblclick: () => change(value) });
  const figure = make("output"), label = make("span", { text: spec.label });
  const set = (v) => {
    const p = clamp(Math.round(place(v)), 0, count), text = spec.say?.(v) ?? String(hop ? v : +v.toPrecision(4));
    if (+input.value !== p) input.value = p;
    input.style.setProperty("--tk-part", String(p / count)), input.setAttribute("aria-valuetext", text);
    put(figure, format.minus(text));
  };
  return { name: spec.name, node: make("label", { class: "tk-dial" }, label, input, figure), set };
}

/** The frame of a plot of `end` steps {title, unit, left, right, top, bottom, scale, wish}; adds px, y, step(x). */
function panel(svg, plot, end) {
  const { left, right, top, bottom } = plot, wide = right - left > 400;
  plot.px = (k) => left + (k / end) * (right - left);
  plot.y = (v) => bottom - plot.scale(v) * (bottom - top);
  plot.step = (x) => Math.round(((x - left) / (right - left)) * end);
  const title = shape(svg, "text", { class: "tk-plot-title", x: left - 36, y: top - 18 });
  shape(title, "tspan", {}, plot.title), title.append(` ${plot.unit}`);
  axis(svg, plot, left, right, plot.wish);
  for (let k = 0; k <= end && right - left > 3 * end; k++) {
    const x = plot.px(k);
    shape(svg, "line", { class: "tk-tick", x1: x, x2: x, y1: bottom + 5, y2: bottom + 8 });
  }
  for (const k of ticks(0, end, wide ? 6 : 4).filter(Number.isInteger))
    shape(svg, "text", { x: plot.px(k), y: bottom + 22, "text-anchor": "middle" }, format.count(k));
}

/**
 * A line {values, name, cat, focused, marks, kept} over a panel; level 0 is joined by dots where it has a slot. What
 * was drawn is left in `kept`, by the panel: a line that did not move is not written again.
 */
function series(svg, plot, line) {
  const key = [plot.px(0), plot.px(1), ...[0, 1, 3].map(plot.y), line.cat, line.focused].join(" ");
  if (line.kept[plot.what]?.key !== key) line.kept[plot.what] = { key, ...strokes(plot, line) };
  const { main, joined, marks } = line.kept[plot.what];
  const kind = `tk-cat${line.cat}${line.focused ? " tk-focused" : ""}`;
  const path = shape(svg, "path", { class: `tk-line ${kind}`, d: main });
  path.dataset.curve = `${plot.what} ${line.name}`, path.values = line.values;
  if (joined) shape(svg, "path", { class: `tk-line tk-joined ${kind}`, d: joined });
  if (marks) shape(svg, "path", { class: `tk-mark-path ${kind}`, d: marks });
}

/** The paths of a line: through its points, from the last of them to level 0, and its marks where they have room. */
function strokes(plot, { values, cat, focused, marks }) {
  const points = values.map((v, k) => [plot.px(k), plot.y(v)]), zero = plot.level ? values.indexOf(0) : -1;
  const main = curve(zero < 0 ? points : points.slice(0, zero)), r = focused ? 3.4 : 2.3;
  const joined = zero > 0 ? curve([points[zero - 1], points[zero]]) : "";
  if (!marks || plot.px(1) - plot.px(0) < (focused ? 5 : 8)) return { main, joined };
  const seen = points.filter(([, y]) => Number.isFinite(y)), form = markShape(cat, r);
  return { main, joined, marks: seen.map(([x, y]) => `M${x.toFixed(2)} ${y.toFixed(2)}${form}`).join("") };
}

/** The panel that a pointer is over, or the first. */
function panelAt(svg, panels, event) {
  const place = svg.getBoundingClientRect(), x = event.clientX - place.left, y = event.clientY - place.top;
  return panels.find((p) => x > p.left - 26 && x < p.right + 12 && y > p.top - 30 && y < p.bottom + 30) ?? panels[0];
}

/** A box of words: a title, then rows {name, cat, kind, text} with their marks, at most `most`, and how many more. */
function readout(node, title, rows, most) {
  const lines = rows.slice(0, most).map(({ name, cat, kind, text }) => {
    const line = make("div", { class: kind }), picture = shape(line, "svg", { width: 10, height: 10 });
    shape(picture, "path", { class: "tk-mark-path", d: mark(cat, 5, 5, 3.6) });
    line.append(make("span", { text: name }), make("span", { text }));
    return line;
  });
  const more = rows.length > most ? [make("div", { text: `and ${rows.length - most} more` })] : [];
  node.replaceChildren(make("b", { text: title }), ...lines, ...more);
}

/** Top right or bottom left of a panel, [x, y]: where a box hides the smaller part of the lines. */
function corner(plot, lines, width, height) {
  const { left, right, top, bottom, px, y } = plot;
  const places = [[right - width, top - 4], [left + 10, bottom - height - 6]];
  const hidden = ([x0, y0]) => lines.reduce((sum, values) => sum + values.filter((v, k) =>
    px(k) > x0 - 8 && px(k) < x0 + width + 8 && y(v) > y0 - 8 && y(v) < y0 + height + 8).length / values.length, 0);
  return hidden(places[0]) <= hidden(places[1]) ? places[0] : places[1];
}

/** Puts `text` into the clipboard; where there is none, off localhost and https, selects `node` and copies that. */
async function copyText(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    return document.execCommand("copy");
  }
}
