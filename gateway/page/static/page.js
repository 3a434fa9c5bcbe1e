// The page's entry: connects the stream of events with what shows it, and keeps the token.

import { byId } from "./elements.js";
import { ScoreForm } from "./form.js";
import { addImage, showImages } from "./images.js";
import { Overview } from "./overview.js";
import { EventStream } from "./stream.js";

const TOKEN = "reward-token";
const token = () => sessionStorage.getItem(TOKEN) ?? "";

const overview = new Overview();
const form = new ScoreForm(token, askForToken);

const stream = new EventStream("/v1/page/events", {
  token,
  state(state, text) {
    byId("connection").querySelector(".dot").dataset.state = state;
    byId("connection-text").textContent = text;
  },
  unauthorized: askForToken,
  event(name, data) {
    if (name === "hello") {
      overview.start(data.rewards, data.history);
      form.offer(data.rewards);
      showImages(data.images);
    } else if (name === "rewards") {
      overview.update(data);
      form.offer(data);
    } else if (name === "image") {
      addImage(data);
    }
  },
});

function askForToken() {
  byId("token-box").open = true;
  byId("token").focus();
}

byId("token").value = token();
byId("token-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value.trim());
  byId("token-box").open = false;
  stream.restart();
});

// A hidden page gives its place to others.
document.addEventListener("visibilitychange", () => (document.hidden ? stream.stop() : stream.restart()));
window.setInterval(() => overview.tick(), 1000);
stream.restart();
