// Boxes and labels on the image: objects with class and color, lines of text as they were read.

import { byId, element, svgElement } from "./elements.js";

// What a result's details say about places: [{kind, points, label, swatch}], points in pixels of the image.
export function marksOf(reward, result) {
  const details = result.details ?? {};
  const objects = listOf(details.detections).map((found) => ({
    kind: "object",
    points: corners(found.box),
    label: [found.color, found.class].filter(Boolean).join(" "),
    swatch: found.color,
  }));
  const lines = listOf(details.lines).map((line) => ({ kind: "text", points: corners(line.box), label: line.text }));
  return [...objects, ...lines].filter((mark) => mark.points !== null);
}

function listOf(value) {
  return Array.isArray(value) ? value.filter((one) => one !== null && typeof one === "object") : [];
}

// A box is [left, top, right, bottom], or the points of a polygon.
function corners(box) {
  if (!Array.isArray(box)) return null;
  if (box.length === 4 && box.every(Number.isFinite)) {
    const [left, top, right, bottom] = box;
    return [[left, top], [right, top], [right, bottom], [left, bottom]];
  }
  const isPoint = (point) => Array.isArray(point) && point.length === 2 && point.every(Number.isFinite);
  return box.length > 2 && box.every(isPoint) ? box : null;
}

export function drawMarks(marks) {
  const [width, height] = fileSize(byId("shown"));
  byId("boxes").setAttribute("viewBox", `0 0 ${width} ${height}`);
  byId("boxes").replaceChildren(...marks.flatMap((mark) => [outline(mark, "halo"), outline(mark, mark.kind)]));
  byId("labels").replaceChildren(...marks.map((mark) => label(mark, width, height)));
}

// Pixels of the file as they are stored. The natural size is that of the upright picture, the shown one is not turned.
function fileSize(image) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const turned = width > height !== image.clientWidth > image.clientHeight;
  return turned ? [height || 1, width || 1] : [width || 1, height || 1];
}

function outline(mark, kind) {
  return svgElement("polygon", { class: kind, points: mark.points.map((point) => point.join(",")).join(" ") });
}

// Above the box where there is room, else inside it; from the box's left edge, or its right one near the border.
function label(mark, width, height) {
  const xs = mark.points.map((point) => point[0]);
  const ys = mark.points.map((point) => point[1]);
  const [left, right] = [Math.min(...xs) / width, Math.max(...xs) / width];
  const top = Math.min(...ys) / height;
  const swatch = mark.swatch ? element("span", { class: "swatch" }) : null;
  if (swatch) swatch.style.backgroundColor = mark.swatch;
  const node = element("span", { class: `label ${mark.kind}` }, swatch, mark.label);
  if (left + right > 1.2) node.style.right = `${100 * (1 - right)}%`;
  else node.style.left = `${100 * left}%`;
  node.style.top = `${100 * top}%`;
  node.classList.toggle("inside", top < 0.08);
  return node;
}
