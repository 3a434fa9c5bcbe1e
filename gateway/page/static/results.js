// One reward's answer as a card: the score, and why.

import { element } from "./elements.js";
import { score } from "./numbers.js";

const KNOWN = new Set(["correct", "tag", "reason", "threshold", "detections", "terms", "target", "recognised", "lines"]);

export function resultCard(name, result, range) {
  const heading = element("h3", {}, name);
  if (result.error) {
    const code = element("code", {}, result.error.code);
    return element("article", { class: "failed", "data-reward": name }, heading, element("p", { class: "bad" }, code, ` ${result.error.message}`));
  }
  heading.append(element("output", {}, score(result.score)));
  const details = result.details ?? {};
  return element(
    "article",
    { "data-reward": name },
    heading,
    meter(result.score, range),
    verdict(details),
    reading(details),
    terms(details.terms),
    objects(details.detections),
    lines(details.lines),
    rest(details),
  );
}

function meter(value, range) {
  if (!range || range[0] === null || range[1] === null) return null;
  return element("meter", { min: range[0], max: range[1], value, "aria-hidden": "true" });
}

function verdict(details) {
  if (typeof details.correct !== "boolean") return null;
  const text = details.correct ? "as asked" : "not as asked";
  const reason = details.reason ? `: ${details.reason}` : "";
  return element("p", { class: details.correct ? "good" : "bad" }, `${text}${reason}`);
}

function reading(details) {
  if (typeof details.target !== "string") return null;
  const pair = (name, text) => [element("dt", {}, name), element("dd", {}, text || "nothing")];
  return element("dl", {}, ...pair("target", details.target), ...pair("read", details.recognised));
}

function terms(list) {
  return table(["term", "asked", "value"], list, (term) => [term.class, term.asked, score(term.value)]);
}

function objects(list) {
  return table(["object", "color", "confidence"], list, (found) => [found.class, colorOf(found.color), found.score.toFixed(3)]);
}

function lines(list) {
  return table(["text read", "confidence"], list, (line) => [line.text, line.confidence.toFixed(3)]);
}

function colorOf(name) {
  if (!name) return "–";
  const swatch = element("span", { class: "swatch" });
  swatch.style.backgroundColor = name;
  return element("span", {}, swatch, name);
}

// A table of `list`, the last column a number; null where there is nothing to list.
function table(columns, list, cells) {
  if (!Array.isArray(list) || !list.length) return null;
  const kind = (index) => ({ class: index === columns.length - 1 ? "number" : null });
  const head = columns.map((name, index) => element("th", { scope: "col", ...kind(index) }, name));
  const rows = list.map((one) => element("tr", {}, ...cells(one).map((cell, index) => element("td", kind(index), cell))));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

// Details of rewards this page knows nothing about.
function rest(details) {
  const others = Object.entries(details).filter(([name]) => !KNOWN.has(name));
  if (!others.length) return null;
  return element("pre", {}, JSON.stringify(Object.fromEntries(others), null, 1));
}
