import { appendFileSync, renameSync, statSync } from "node:fs";
import type { RefusedRequest } from "./proxy.js";

const MINUTE_MS = 60_000;

/**
 * The log of refused requests, with one JSON object in each line. A server can cause any number of refusals. So the log
 * gets a limited number of lines for each server and minute, and has at most two files of limited size.
 */
export class RefusalLog {
  readonly #path: string;
  readonly #limits: { perMinute: number; bytes: number };
  #minute = 0;
  /** How many requests of each server were refused in this minute. */
  #refused = new Map<string, number>();

  constructor(path: string, limits = { perMinute: 60, bytes: 4 * 1024 * 1024 }) {
    this.#path = path;
    this.#limits = limits;
  }

  write({ user, server, target, result, detail }: RefusedRequest, nowMs = Date.now()): void {
    this.#beginMinute(Math.floor(nowMs / MINUTE_MS), nowMs);
    const count = (this.#refused.get(server) ?? 0) + 1;
    this.#refused.set(server, count);
    if (count > this.#limits.perMinute) return;
    this.#append({ time: new Date(nowMs).toISOString(), result, user, server, ...target, detail });
  }

  /**
   * When a new minute begins, logs how many refusals of each server were left out of the log in the last one, and
   * resets the counts.
   */
  #beginMinute(minute: number, nowMs: number): void {
    if (minute === this.#minute) return;
    const left = [...this.#refused].filter(([, count]) => count > this.#limits.perMinute);
    this.#minute = minute;
    this.#refused = new Map();
    for (const [server, count] of left) {
      const detail = `${count - this.#limits.perMinute} more requests of a minute were refused`;
      this.#append({ time: new Date(nowMs).toISOString(), server, detail });
    }
  }

  #append(entry: object): void {
    try {
      const bytes = statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0;
      if (bytes > this.#limits.bytes) renameSync(this.#path, `${this.#path}.1`);
      appendFileSync(this.#path, `${JSON.stringify(entry)}\n`, { mode: 0o600 });
    } catch {
      // A full disk must not stop the proxy. The metrics still count the request.
    }
  }
}
