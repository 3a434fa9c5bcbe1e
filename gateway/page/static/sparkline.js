// A line of the last two minutes, one value a second, as SVG.

import { svgElement } from "./elements.js";

export const LENGTH = 120;
const HEIGHT = 24;

export class Sparkline {
  constructor(label, values = []) {
    this.values = [...Array(LENGTH).fill(0), ...values.map((value) => value ?? 0)].slice(-LENGTH);
    this.area = svgElement("path", { class: "area" });
    this.line = svgElement("path", { class: "line" });
    this.node = svgElement(
      "svg",
      { class: "spark", viewBox: `0 0 ${LENGTH - 1} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
      this.area,
      this.line,
    );
    this.draw();
  }

  push(value) {
    this.values.push(value ?? 0);
    this.values.shift();
    this.draw();
  }

  draw() {
    const highest = Math.max(...this.values) || 1;
    const points = this.values.map((value, x) => `${x} ${(HEIGHT - 1 - (value / highest) * (HEIGHT - 3)).toFixed(1)}`);
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M0 ${HEIGHT}L${points.join("L")}L${LENGTH - 1} ${HEIGHT}Z`);
  }
}
