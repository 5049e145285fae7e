import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { Fleet } from "../../src/index.js";
import { startBuilt } from "../gateway/processes.js";
import { RawClient } from "../gateway/raw-client.js";
import { claim, compare, ratio } from "../measure.js";

const TURNS = 60;
/** The reply repeats these words. They are so many that the first delta comes long before the end of the turn. */
const PROMPT = "hello there, how are you today?";

/** A connection to the HTTP API that stays open and does as little work as possible. It sends one request at a time. */
class RawHttp {
  readonly #socket: Socket;
  readonly #head: string;
  #received = "";
  #onData = (): void => undefined;

  private constructor(socket: Socket, head: string) {
    this.#socket = socket;
    this.#head = head;
    socket.setEncoding("latin1").on("data", (text: string) => {
      this.#received += text;
      this.#onData();
    });
  }

  static async open(url: string, token: string): Promise<RawHttp> {
    const { hostname, port, host } = new URL(url);
    const socket = connect({ host: hostname, port: Number(port) }).setNoDelay(true);
    await once(socket, "connect");
    return new RawHttp(socket, `Host: ${host}\r\nAuthorization: Bearer ${token}\r\nContent-Type: application/json\r\n`);
  }

  /** Resolves when the answer received so far contains `text`. */
  async #until(text: string): Promise<void> {
    while (!this.#received.includes(text))
      await new Promise<void>((resolve) => {
        this.#onData = resolve;
      });
  }

  /**
   * Runs a turn. Resolves with the milliseconds until the first delta, and until the end.
   *
   * @param accept the type of the answer
   */
  async turn(id: string, accept: string): Promise<{ first: number; whole: number }> {
    const body = JSON.stringify({ prompt: PROMPT });
    this.#received = "";
    const begun = performance.now();
    const about = `Accept: ${accept}\r\nContent-Length: ${body.length}\r\n`;
    this.#socket.write(`POST /v1/sessions/${id}/turns HTTP/1.1\r\n${this.#head}${about}\r\n${body}`);
    const isStream = accept === "text/event-stream";
    if (isStream) await this.#until("event: assistant.message_delta");
    const first = performance.now() - begun;
    await this.#until(isStream ? "\r\n0\r\n\r\n" : '"usage":');
    const whole = performance.now() - begun;
    if (!this.#received.startsWith("HTTP/1.1 200")) throw new Error(this.#received.slice(0, 500));
    return { first, whole };
  }

  end(): void {
    this.#socket.destroy();
  }
}

/** Compares the turns of one client over HTTP and through the front door. Both use sessions on the same server. */
export async function measureTurns(env: NodeJS.ProcessEnv, folder: string): Promise<void> {
  await using fleet = await Fleet.open({ env, cwd: folder });
  const { token } = await fleet.tokens.issue("bench");
  using frontDoor = await startBuilt("door", env);
  using httpDoor = await startBuilt("http", env);
  for (const sessionId of ["json", "stream"])
    await fleet.sessions.leave(await fleet.sessions.create({ user: "bench", sessionId }), { park: true });
  const through = await RawClient.connect(frontDoor.url, token);
  await through.request("session.create", { sessionId: "door", streaming: true });
  const http = await RawHttp.open(httpDoor.url, token);
  const door = async () => {
    const begun = performance.now();
    let first = Number.NaN;
    through.onDelta = () => {
      if (Number.isNaN(first)) first = performance.now() - begun;
    };
    await through.turn("door", PROMPT);
    return { first, whole: performance.now() - begun };
  };
  const stream = async () => await http.turn("stream", "text/event-stream");
  const json = async () => await http.turn("json", "application/json");
  for (const warm of [door, stream, json]) for (let index = 0; index < 5; index++) await warm();
  await delay(500);
  const medians = await compare(TURNS, [
    { name: "first delta through the front door", round: async () => (await door()).first },
    { name: "first delta over HTTP", round: async () => (await stream()).first },
    { name: "turn through the front door", round: async () => (await door()).whole },
    { name: "turn over HTTP, as a stream", round: async () => (await stream()).whole },
    { name: "turn over HTTP", round: async () => (await json()).whole },
  ]);
  const of = (over: string, at: string) => ratio(medians, over, at);
  claim("first delta, HTTP to front door", of("first delta over HTTP", "first delta through the front door"), 1.1);
  claim("turn, HTTP to front door", of("turn over HTTP", "turn through the front door"), 1.15);
  claim("turn as a stream, HTTP to front door", of("turn over HTTP, as a stream", "turn through the front door"), 1.15);
  through.end();
  http.end();
}
