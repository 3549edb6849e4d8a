// What is wrong with a view as it stands, in words: for tests/browser/test_pictures.py. (view) => [faults]
(view) => {
  const faults = [], frame = view.getBoundingClientRect();
  const say = (node) => `"${node.textContent.trim().slice(0, 30)}"`;
  const brush = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  brush.canvas.width = brush.canvas.height = 64;

  function rgba(colour) { // whatever form the style has it in
    brush.clearRect(0, 0, 1, 1), (brush.fillStyle = colour), brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  }
  const over = ([r, g, b, a], below) => [r, g, b].map((v, i) => a * v + (1 - a) * below[i]);
  const parents = (node) => (node === view ? [node] : [node, ...parents(node.parentElement)]);
  const ground = (node) => parents(node).reverse().map((n) => rgba(getComputedStyle(n).backgroundColor))
    .reduce((below, colour) => over(colour, below), over(rgba(getComputedStyle(document.body).backgroundColor), [255, 255, 255]));
  function light(colour) {
    const [r, g, b] = colour.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  function contrast(node) {
    const style = getComputedStyle(node), plate = node.previousElementSibling; // a pill has its words on a plate
    const filled = plate?.tagName === "rect" ? rgba(getComputedStyle(plate).fill) : [0, 0, 0, 0];
    const below = over(filled, ground(node)), ink = rgba(node.closest("svg") ? style.fill : style.color);
    ink[3] *= parents(node).reduce((all, n) => all * getComputedStyle(n).opacity, 1);
    const pair = [light(over(ink, below)), light(below)].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  }

  // the words that are seen, each with the box of its letters
  const words = [], walk = document.createTreeWalker(view, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode, node = text.parentElement, range = document.createRange();
    if (!text.textContent.trim() || node.closest(".tk-off, option, [hidden]")) continue;
    if (!node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    range.selectNodeContents(text);
    let clip = [0, 0, innerWidth, Infinity];
    for (const n of parents(node)) {
      if (getComputedStyle(n).overflowX === "visible" || n.tagName === "svg") continue;
      const { left, top, right, bottom } = n.getBoundingClientRect();
      clip = [Math.max(clip[0], left), Math.max(clip[1], top), Math.min(clip[2], right), Math.min(clip[3], bottom)];
    }
    for (const { left, top, right, bottom } of range.getClientRects()) {
      const trim = (bottom - top) * 0.22; // above and below the letters
      const box = [Math.max(left, clip[0]), Math.max(top + trim, clip[1]), Math.min(right, clip[2]), Math.min(bottom - trim, clip[3])];
      if (box[2] - box[0] > 1 && box[3] - box[1] > 3) words.push({ node, box });
    }
  }
  words.forEach(({ node, box: a }, i) => {
    for (const { node: other, box: b } of words.slice(i + 1)) {
      const across = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), down = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
      if (node !== other && across > 1.5 && down > 1.5) faults.push(`${say(node)} lies on ${say(other)}`);
    }
    if (a[0] < frame.left - 1 || a[2] > frame.right + 1) faults.push(`${say(node)} sticks out`);
  });
  for (const node of new Set(words.map((word) => word.node))) {
    if (node.closest(":disabled, [aria-disabled=true]")) continue;
    const ratio = contrast(node);
    if (ratio < 4.5) faults.push(`${say(node)} has a contrast of ${ratio.toFixed(2)}`);
  }
  for (const node of view.querySelectorAll("*")) {
    const { left, right, width } = node.getBoundingClientRect(), gone = !width || node.closest(".tk-off, svg svg, [hidden]");
    if (!gone && (left < frame.left - 12 || right > frame.right + 12)) faults.push(`${node.tagName}.${node.getAttribute("class")} sticks out`);
  }
  for (const canvas of view.querySelectorAll("canvas")) {
    if (!canvas.checkVisibility()) continue;
    brush.clearRect(0, 0, 64, 64), brush.drawImage(canvas, 0, 0, 64, 64);
    const seen = new Set(new Uint32Array(brush.getImageData(0, 0, 64, 64).data.buffer));
    const clear = seen.has(0) && canvas.matches(".tk-over"); // nothing lies over the picture just now
    if (seen.size < 2 && !clear) faults.push(`a canvas is blank: ${canvas.parentElement.className} ${canvas.className}`);
  }
  return words.length < 20 ? [...faults, `only ${words.length} words`] : faults;
}
