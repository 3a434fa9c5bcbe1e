// The last images that went through the gateway, the newest first.

import { byId, element } from "./elements.js";
import { score } from "./numbers.js";

const SHOWN = 24;

export function showImages(images) {
  byId("images").replaceChildren(...images.map(tile).reverse().slice(0, SHOWN));
  byId("recent").hidden = images.length === 0;
}

export function addImage(image) {
  const list = byId("images");
  list.prepend(tile(image));
  while (list.children.length > SHOWN) list.lastElementChild.remove();
  byId("recent").hidden = false;
}

function tile(image) {
  const picture = element("img", { src: `data:image/webp;base64,${image.webp}`, alt: image.prompt, title: image.prompt });
  const results = image.results.map((result) =>
    element(
      "span",
      { class: result.error ? "bad" : null, title: result.reward },
      element("span", { class: "name" }, result.reward),
      result.error ?? score(result.score),
    ),
  );
  return element("li", {}, picture, element("p", { class: "prompt" }, image.prompt), element("p", { class: "scores" }, ...results));
}
