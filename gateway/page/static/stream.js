// Server-sent events over fetch, because EventSource cannot carry a bearer token.

const SHORTEST_PAUSE_S = 1;
const LONGEST_PAUSE_S = 20;
const SILENCE_S = 35; // the server says something every 10 s

export class EventStream {
  // `on` has token(), state(state, text), event(name, data) and unauthorized().
  constructor(url, on) {
    this.url = url;
    this.on = on;
    this.attempt = 0;
    this.abort = null;
    this.timer = 0;
  }

  stop() {
    window.clearTimeout(this.timer);
    this.abort?.abort();
    this.abort = null;
    this.on.state("waiting", "paused");
  }

  restart() {
    this.stop();
    this.attempt = 0;
    this.connect();
  }

  async connect() {
    const abort = new AbortController();
    this.abort = abort;
    this.on.state("waiting", "connecting");
    let pause = null;
    try {
      const headers = this.on.token() ? { Authorization: `Bearer ${this.on.token()}` } : {};
      const answer = await fetch(this.url, { headers, signal: abort.signal, cache: "no-store" });
      if (answer.status === 401) {
        this.on.state("down", "needs a token");
        this.on.unauthorized();
        return;
      }
      if (!answer.ok) {
        pause = Number(answer.headers.get("retry-after")) || null;
        throw new Error(answer.status === 503 ? "too many pages are open" : `status ${answer.status}`);
      }
      this.on.state("up", "live");
      this.attempt = 0;
      await this.read(answer.body.getReader(), abort);
      throw new Error("the gateway closed the stream");
    } catch (error) {
      if (this.abort !== abort) return; // stopped, or restarted meanwhile
      this.again(pause, error instanceof TypeError ? "gateway not reachable" : error.message);
    }
  }

  again(pause, why) {
    this.attempt += 1;
    const wait = pause ?? Math.min(SHORTEST_PAUSE_S * 2 ** (this.attempt - 1), LONGEST_PAUSE_S) * (0.5 + Math.random() / 2);
    this.on.state("down", `${why}; again in ${Math.ceil(wait)} s`);
    this.timer = window.setTimeout(() => this.connect(), wait * 1000);
  }

  async read(reader, abort) {
    const decoder = new TextDecoder();
    let text = "";
    let silence = 0;
    const silent = () => abort.abort(new Error("the gateway has gone silent"));
    try {
      for (;;) {
        silence = window.setTimeout(silent, SILENCE_S * 1000);
        const { done, value } = await reader.read();
        window.clearTimeout(silence);
        if (done) return;
        text += decoder.decode(value, { stream: true });
        const blocks = text.split("\n\n");
        text = blocks.pop();
        blocks.forEach((block) => this.dispatch(block));
      }
    } finally {
      window.clearTimeout(silence);
    }
  }

  dispatch(block) {
    const fields = {};
    for (const line of block.split("\n")) {
      const colon = line.indexOf(": ");
      if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
    }
    if (fields.event && fields.data) this.on.event(fields.event, JSON.parse(fields.data));
  }
}
