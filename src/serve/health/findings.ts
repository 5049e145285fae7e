import type { ServerRecord } from "../../model/server.js";
import { endHung, recordHealth } from "../../pool/health.js";
import type { ServeContext } from "../context.js";
import type { LoopTimer } from "../loop-timer.js";
import type { Operations } from "../operations.js";
import type { Restarts } from "./restarts.js";

export type Probed =
  | { kind: "ok"; seconds: number }
  /** The server did not answer as it should. `hangs`: it did not answer the ping, so we cannot ask it about turns either. */
  | { kind: "failed"; reason: string; seconds: number; hangs: boolean }
  /** The server's process is gone. */
  | { kind: "gone" }
  /** We learned nothing about the server: this process was suspended during the probe, or has reached a limit. */
  | { kind: "unknown"; reason: string };

/** After a process closed its connection, we look at it again after these times in milliseconds. */
const STILL_ENDING_MS = [20, 60, 200];

/** Acts on what the monitors find: records whether servers answer, and ends servers that hang. Nothing here throws. */
export class Findings {
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #restarts: Restarts;
  readonly #timer: LoopTimer;

  constructor(context: ServeContext, operations: Operations, restarts: Restarts, timer: LoopTimer) {
    this.#context = context;
    this.#operations = operations;
    this.#restarts = restarts;
    this.#timer = timer;
  }

  probed({ id }: ServerRecord, result: Probed): void {
    const { metrics, log } = this.#context;
    if (result.kind === "ok" || result.kind === "failed") metrics.probed(result.kind, result.seconds);
    if (result.kind === "unknown") log("warn", `server ${id} could not be probed: ${result.reason}`, { server: id });
  }

  /**
   * The server failed a probe. Called while the failures in a row are below the limit, and also at the limit if the
   * server still answers pings.
   */
  sick(server: ServerRecord, failures: number, reason: string): void {
    const { config, log } = this.#context;
    const count = `${failures} of ${config.health.failures}`;
    log("warn", `server ${server.id} did not answer (${count})`, { server: server.id, reason });
    this.record(server, `${reason} (${count})`);
  }

  /** The server answers again. */
  well(server: ServerRecord): void {
    this.#context.log("info", `server ${server.id} answers again`, { server: server.id });
    this.record(server, null);
  }

  /** The server does not answer pings, and has reached the limit of failures in a row. */
  hung(server: ServerRecord, reason: string): void {
    const { id, process } = server;
    this.#operations.begin("it hangs and could not be ended", id, async () => {
      if (!(await endHung(this.#context, server, reason))) return;
      this.#context.log("error", `server ${id} hung and was ended: ${reason}`, { server: id, serverPid: process?.pid });
      this.#restarts.note(id, "hang");
    });
  }

  /**
   * The server's process or its connection has ended. A process that ends closes its connections before all of its threads
   * are gone. Until then it counts as alive.
   */
  gone(): void {
    this.#timer.wake();
    for (const ms of STILL_ENDING_MS) this.#timer.wakeAfter(ms);
  }

  /** Records why a server does not answer, or with null that it answers. */
  record(server: ServerRecord, reason: string | null): void {
    this.#operations.begin("its health could not be recorded", server.id, async () => {
      await recordHealth(this.#context.store, server, reason);
    });
  }
}
