import { once } from "node:events";
import { connect, type Socket } from "node:net";

/** A client of an event stream. It only counts the events in the raw bytes, so it adds little to the measured work. */
export class RawStream {
  readonly socket: Socket;
  /** The number of events received so far, by their name. */
  readonly counts = new Map<string, number>();
  readonly #onEvent: ((name: string) => void) | undefined;
  #rest = "";

  constructor(socket: Socket, onEvent?: (name: string) => void) {
    this.socket = socket;
    this.#onEvent = onEvent;
    socket.setEncoding("latin1").on("data", (text: string) => this.#take(text));
    socket.on("error", () => undefined); // `close` follows
  }

  count(name: string): number {
    return this.counts.get(name) ?? 0;
  }

  /** Resolves when the server closes the connection. */
  async closed(): Promise<void> {
    if (!this.socket.destroyed) await once(this.socket, "close");
  }

  #take(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith("event: ")) continue;
      const name = line.slice("event: ".length).trimEnd();
      this.counts.set(name, this.count(name) + 1);
      this.#onEvent?.(name);
    }
  }
}

export interface StreamRequest {
  method?: "GET" | "POST";
  path: string;
  token: string;
  body?: object;
  onEvent?: (name: string) => void;
}

/** Opens a connection and sends one request, which the server answers with a stream. */
export async function openStream(url: string, { method = "GET", path, token, body, onEvent }: StreamRequest) {
  const { hostname, port, host } = new URL(url);
  const socket = connect({ host: hostname, port: Number(port) }).setNoDelay(true);
  await once(socket, "connect");
  const content = body === undefined ? "" : JSON.stringify(body);
  const about = body === undefined ? "" : `Content-Type: application/json\r\nContent-Length: ${content.length}\r\n`;
  const head = `${method} ${path} HTTP/1.1\r\nHost: ${host}\r\nAuthorization: Bearer ${token}\r\nAccept: text/event-stream\r\nConnection: close\r\n${about}\r\n`;
  const stream = new RawStream(socket, onEvent);
  socket.write(head + content);
  return stream;
}
