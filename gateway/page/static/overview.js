// The two tables: rewards with their sparklines, and replicas.

import { byId, element } from "./elements.js";
import { bytes, rate, seconds } from "./numbers.js";
import { Sparkline } from "./sparkline.js";

export class Overview {
  constructor() {
    this.rows = new Map(); // name of a reward -> what of its row changes
    this.rewards = [];
  }

  // `history[name]` has items and p95_s for each second of the last two minutes.
  start(rewards, history) {
    this.rows.clear();
    byId("rewards").tBodies[0].replaceChildren();
    for (const reward of rewards) this.add(reward, history[reward.name]);
    this.update(rewards);
  }

  update(rewards) {
    this.rewards = rewards;
    for (const reward of rewards) {
      if (!this.rows.has(reward.name)) this.add(reward, { items: [], p95_s: [] });
      this.show(this.rows.get(reward.name), reward);
    }
    const lines = rewards.flatMap((reward) => reward.replicas.map((replica) => replicaRow(reward, replica)));
    byId("replicas").tBodies[0].replaceChildren(...lines);
  }

  // Once a second, whether or not anything came: the lines move on.
  tick() {
    for (const reward of this.rewards) {
      const row = this.rows.get(reward.name);
      row.queueLine.push(reward.queue_items);
      row.itemsLine.push(reward.items_per_s);
      row.p95Line.push(reward.p95_s);
    }
  }

  add(reward, history) {
    const row = {
      version: element("small"),
      replicas: element("td", { "data-label": "replicas" }),
      queue: element("span"),
      items: element("span"),
      p95: element("span"),
      errors: element("td", { class: "number", "data-label": "errors/s" }),
      p50: element("td", { class: "number", "data-label": "p50" }),
      queueLine: new Sparkline(`queue of ${reward.name}`),
      itemsLine: new Sparkline(`items a second of ${reward.name}`, history.items),
      p95Line: new Sparkline(`95th percentile of latency of ${reward.name}`, history.p95_s),
    };
    const name = element("th", { scope: "row" }, reward.name, row.version);
    const cell = (label, line, value) => element("td", { class: "number charted", "data-label": label }, line.node, value);
    byId("rewards").tBodies[0].append(
      element(
        "tr",
        { "data-reward": reward.name },
        name,
        row.replicas,
        cell("queue", row.queueLine, row.queue),
        cell("items/s", row.itemsLine, row.items),
        row.errors,
        row.p50,
        cell("p95", row.p95Line, row.p95),
      ),
    );
    row.name = name;
    this.rows.set(reward.name, row);
  }

  show(row, reward) {
    const up = reward.replicas.filter((replica) => replica.state === "up").length;
    row.version.textContent = reward.version ? `version ${reward.version}` : "no replica has been up yet";
    row.name.title = reward.meaning;
    row.replicas.replaceChildren(
      ...reward.replicas.map((replica) => element("span", { class: "dot", "data-state": replica.state, title: replica.url })),
      element("span", { class: "count" }, `${up}/${reward.replicas.length}`),
    );
    row.queue.textContent = reward.queue_items.toLocaleString("en");
    row.queue.title = `${bytes(reward.queue_bytes)} of ${bytes(reward.queue_bytes_limit)}, ${reward.queue_items_limit} items at most`;
    row.items.textContent = rate(reward.items_per_s);
    row.errors.textContent = rate(reward.errors_per_s);
    row.errors.classList.toggle("bad", reward.errors_per_s > 0);
    row.p50.textContent = seconds(reward.p50_s);
    row.p95.textContent = seconds(reward.p95_s);
  }
}

function replicaRow(reward, replica) {
  return element(
    "tr",
    { "data-replica": replica.url },
    element("th", { scope: "row" }, replica.url.replace(/^http:\/\//, "")),
    element("td", { "data-label": "reward" }, reward.name),
    element("td", { "data-label": "state" }, element("span", { class: "dot", "data-state": replica.state }), replica.state),
    element("td", { class: "number", "data-label": "batches" }, String(replica.inflight_batches)),
    element("td", { class: "number", "data-label": "items" }, String(replica.inflight_items)),
  );
}
