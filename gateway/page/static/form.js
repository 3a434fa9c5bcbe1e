// The form: one image and a prompt to POST /v1/score, and what comes back.

import { byId, element } from "./elements.js";
import { drawMarks, marksOf } from "./overlay.js";
import { resultCard } from "./results.js";
import { seconds } from "./numbers.js";

export class ScoreForm {
  constructor(token, askForToken) {
    this.token = token;
    this.askForToken = askForToken;
    this.file = null;
    this.url = "";
    this.names = "";
    byId("score-form").addEventListener("submit", (submitted) => {
      submitted.preventDefault();
      this.submit();
    });
    byId("image").addEventListener("change", () => this.take(byId("image").files[0]));
    byId("prompt").addEventListener("keydown", (key) => {
      if (key.key === "Enter" && (key.ctrlKey || key.metaKey)) this.submit();
    });
    this.acceptDrops(byId("drop"));
    byId("shown").addEventListener("error", () => this.say(`${this.file.name} is no image this browser can show.`, true));
    byId("shown").addEventListener("load", () => byId("shown").classList.toggle("small", byId("shown").naturalWidth < 200));
    document.addEventListener("paste", (pasted) => this.take(pasted.clipboardData?.files[0]));
  }

  // Check boxes for the rewards there are; what is checked stays so.
  offer(rewards) {
    const names = rewards.map((reward) => reward.name).join(" ");
    if (names === this.names) return;
    this.names = names;
    const off = new Set([...byId("choices").querySelectorAll("input:not(:checked)")].map((box) => box.value));
    byId("choices").replaceChildren(
      ...rewards.map((reward) => {
        const box = element("input", { type: "checkbox", name: "rewards", value: reward.name });
        box.checked = !off.has(reward.name);
        return element("label", { title: reward.meaning }, box, reward.name);
      }),
    );
    this.ranges = new Map(rewards.map((reward) => [reward.name, reward.range]));
  }

  acceptDrops(area) {
    for (const name of ["dragenter", "dragover"]) {
      area.addEventListener(name, (drag) => {
        drag.preventDefault();
        area.classList.add("over");
      });
    }
    for (const name of ["dragleave", "drop"]) area.addEventListener(name, () => area.classList.remove("over"));
    area.addEventListener("drop", (drop) => {
      drop.preventDefault();
      this.take(drop.dataTransfer.files[0]);
    });
  }

  take(file) {
    if (!file) return;
    this.file = file;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(file);
    byId("shown").src = this.url;
    byId("picture").hidden = false;
    byId("drop-text").textContent = file.name || "pasted image";
    byId("results").replaceChildren();
    drawMarks([]);
    this.say("");
  }

  async submit() {
    const rewards = [...byId("choices").querySelectorAll("input:checked")].map((box) => box.value);
    if (!this.file) return this.say("Choose an image first.", true);
    if (!rewards.length) return this.say("Choose at least one reward.", true);
    const body = new FormData();
    body.append("image", this.file);
    body.append("prompt", byId("prompt").value);
    body.append("rewards", rewards.join(","));
    if (byId("metadata").value.trim()) body.append("metadata", byId("metadata").value);
    byId("submit").disabled = true;
    this.say("Scoring…");
    const started = performance.now();
    try {
      const headers = this.token() ? { Authorization: `Bearer ${this.token()}` } : {};
      const answer = await fetch("/v1/score", { method: "POST", body, headers });
      await this.show(answer, (performance.now() - started) / 1000);
    } catch (error) {
      this.say(`No answer: ${error.message}`, true);
    } finally {
      byId("submit").disabled = false;
    }
  }

  // The answer holds an item with its results, or a problem of the request as a whole.
  async show(answer, took) {
    const document = await answer.json();
    byId("results").replaceChildren();
    drawMarks([]);
    if (!document.items) {
      if (answer.status === 401) this.askForToken();
      return this.say(`${document.title}: ${document.detail}`, true);
    }
    const results = Object.entries(document.items[0].results);
    byId("results").replaceChildren(...results.map(([name, result]) => resultCard(name, result, this.ranges.get(name))));
    await byId("shown").decode().catch(() => {});
    drawMarks(results.flatMap(([name, result]) => marksOf(name, result)));
    this.say(`Answered in ${seconds(took)}.`);
  }

  say(text, bad = false) {
    byId("form-status").textContent = text;
    byId("form-status").classList.toggle("bad", bad);
  }
}
