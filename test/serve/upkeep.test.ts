import { mkdir } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { ServerRecord } from "../../src/base/server.js";
import type { Config } from "../../src/config/schema.js";
import { identify, type LaunchedProcess } from "../../src/runtime/process/process-table.js";
import { LoopTimer, Operations, type ServeContext } from "../../src/serve/context.js";
import type { ServerProcesses } from "../../src/serve/report/measurements.js";
import { Upkeep } from "../../src/serve/upkeep.js";
import { setUseMarker } from "../../src/servers/use-markers.js";
import { eventually } from "../fixtures/eventually.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { isRunning, sleeper } from "../fixtures/processes.js";
import { serverRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const INTERVAL_MS = 1_000;
const PAUSE_MS = 60_000;
const IDLE_MS = 600_000;
const NO_LIMITS = { maxMemoryBytes: null, maxAgeMs: null };
const MEMORY_BYTES = 1_000;

async function server(id: string, over: Partial<ServerRecord> = {}): Promise<ServerRecord> {
  const home = join(await temporaryRoot(), "servers", id, "home");
  await mkdir(home, { recursive: true });
  const startedAt = new Date(Date.now() - 3_600_000).toISOString();
  // The launch id decides by how much this server may exceed the maximum age: with zeros, by nothing.
  return serverRecord(id, { home, startedAt, launchId: `0000-${id}`, ...over });
}

/** The record of the server after it was recycled: another launch, which exceeds the same limits. */
function replaced(old: ServerRecord): ServerRecord {
  return { ...old, launchId: `${old.launchId}-next` };
}

/**
 * Fakes of the objects that the upkeep uses. `done` lists the calls of the fake pool and metrics, and the errors that
 * are logged.
 */
function upkeep(recycle: Partial<Config["recycle"]> = {}) {
  const clock = new TestClock();
  const done: string[] = [];
  const gates = new Map<string, Promise<void>>();
  const stopping = new AbortController().signal;
  const processes = { memoryOf: () => MEMORY_BYTES, of: () => started } as unknown as ServerProcesses;
  const started: LaunchedProcess[] = [];
  const context = {
    clock,
    config: {
      drain: { timeoutMs: 1_000 },
      health: { intervalMs: INTERVAL_MS, timeoutMs: 1_000 },
      pool: { idleTimeoutMs: IDLE_MS },
      recycle: { ...NO_LIMITS, ...recycle },
    },
    pool: {
      recycle: async (id: string) => {
        done.push(`recycle ${id}`);
        await gates.get(id);
        return { kind: "replaced", server: serverRecord(id) };
      },
      stop: async (id: string) => {
        done.push(`stop ${id}`);
        return { outcome: "drained" };
      },
    },
    metrics: {
      series: { recycles: { inc: ({ reason }: { reason: string }) => done.push(`count ${reason}`) } },
      failed: () => undefined,
    },
    log: (level: string, message: string) => void (level === "error" && done.push(message)),
  } as unknown as ServeContext;
  const operations = new Operations(context, new LoopTimer(clock), stopping);
  const upkeep = new Upkeep(context, operations, processes, stopping);
  return { clock, done, gates, operations, started, upkeep };
}

async function used(on: ServerRecord, sessionId: string): Promise<Disposable> {
  const marker = await setUseMarker(on, sessionId, { waitMs: 0, signal: undefined });
  if (marker === null) throw new Error("the session is being evicted");
  return marker;
}

describe("the recycler", () => {
  function make(limits: Partial<Config["recycle"]>) {
    const parts = upkeep(limits);
    const look = async (...servers: ServerRecord[]) => {
      parts.upkeep.keepOnly(servers);
      parts.upkeep.recycle(servers);
      await parts.operations.settled();
    };
    return { ...parts, look };
  }

  it.each([
    ["memory", { maxMemoryBytes: MEMORY_BYTES - 1 }],
    ["age", { maxAgeMs: 3_000_000 }],
  ])(
    "a server that still exceeds its limit after it was recycled is recycled again only after the pause: %s",
    async (reason, limit) => {
      const { clock, done, look } = make(limit);
      const old = await server("s1");
      await look(old);
      expect(done).toEqual(["recycle s1", `count ${reason}`]);
      const next = replaced(old);
      clock.jump(PAUSE_MS - 1);
      await look(next);
      expect(done).toHaveLength(2);
      clock.jump(1);
      await look(next);
      expect(done).toHaveLength(4);
    },
  );

  it("a server that is always in a turn is recycled after five minutes", async () => {
    const { clock, done, look } = make({ maxAgeMs: 1 });
    const old = await server("s1");
    using _turn = await used(old, "talk");
    await look(old);
    clock.jump(5 * 60_000);
    await look(old);
    expect(done).toEqual([]);
    clock.jump(INTERVAL_MS);
    await look(old);
    expect(done).toEqual(["recycle s1", "count age"]);
  });

  it("servers are recycled one at a time", async () => {
    const { done, gates, look, operations, upkeep } = make({ maxAgeMs: 1 });
    const [one, two] = [await server("one"), await server("two")];
    let open: () => void = () => undefined;
    gates.set("one", new Promise<void>((resolve) => (open = resolve)));
    upkeep.recycle([one, two]);
    await eventually("the first", () => done.includes("recycle one"));
    upkeep.recycle([one, two]);
    expect(done).toEqual(["recycle one"]);
    open();
    await operations.settled();
    await look(replaced(one), two);
    expect(done).toEqual(["recycle one", "count age", "recycle two", "count age"]);
  });
});

describe("the idle stopper", () => {
  function make() {
    const parts = upkeep();
    const look = async (on: ServerRecord, ownPorts: ReadonlySet<number> = new Set()) => {
      parts.upkeep.keepOnly([on]);
      parts.upkeep.stopIdle([on], ownPorts);
      await parts.operations.settled();
    };
    /** Expects that the server is stopped after the idle timeout, and not before. */
    const expectStop = async (on: ServerRecord) => {
      const { clock, done } = parts;
      clock.jump(IDLE_MS);
      await look(on);
      expect(done).toEqual([]);
      clock.jump(1);
      await look(on);
      expect(done).toEqual([`stop ${on.id}`]);
    };
    return { ...parts, look, expectStop };
  }

  it("the idle stopper spares a server with a connected client, but ignores connections of serve itself", async () => {
    const { clock, done, look } = make();
    const listener = await listening();
    const { port } = listener.address() as { port: number };
    const on = await server("s1", { port });
    const socket = connect(port, "127.0.0.1");
    onTestFinished(() => void socket.destroy());
    await eventually("the connection", () => socket.localPort);
    await look(on);
    clock.jump(IDLE_MS + 1);
    await look(on);
    expect(done).toEqual([]);
    clock.jump(IDLE_MS + 1);
    await look(on, new Set([socket.localPort ?? 0]));
    expect(done).toEqual(["stop s1"]);
  });

  it("the idle stopper restarts a server's idle time with each launch, and never stops a shared server", async () => {
    const { clock, done, look } = make();
    const on = await server("s1");
    const shared = await server("shared-1", { user: null });
    await look(on);
    clock.jump(IDLE_MS + 1);
    await look(replaced(on));
    for (let round = 0; round < 2; round++) {
      await look(shared);
      clock.jump(IDLE_MS);
    }
    expect(done).toEqual([]);
  });
});

async function listening(): Promise<Server> {
  const listener = createServer((socket) => onTestFinished(() => void socket.destroy()));
  onTestFinished(() => void listener.close());
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
  return listener;
}

describe("the process cleanup", () => {
  function make() {
    const parts = upkeep();
    const look = async (on: ServerRecord) => {
      parts.upkeep.endLeftovers([on]);
      await parts.operations.settled();
    };
    const child = (sessionId: string | null) => {
      const pid = sleeper();
      const identity = identify(pid);
      if (identity === null) throw new Error("it has ended");
      parts.started.push({ identity, sessionId } as LaunchedProcess);
      return pid;
    };
    return { ...parts, look, child };
  }

  it("the process cleanup ends a process of a session in use only twelve health intervals after the use ended", async () => {
    const { clock, look, child } = make();
    const on = await server("s1");
    const [own, unknown] = [child("talk"), child(null)];
    const use = await used(on, "talk");
    for (let interval = 0; interval < 30; interval++) {
      await look(on);
      clock.jump(INTERVAL_MS);
    }
    use[Symbol.dispose]();
    await look(on);
    clock.jump(11 * INTERVAL_MS);
    await look(on);
    expect([own, unknown].map(isRunning)).toEqual([true, true]);
    clock.jump(INTERVAL_MS);
    await look(on);
    await eventually("their end", () => ![own, unknown].some(isRunning));
  });

  it("the process cleanup spares a server's own runtime, even though the runtime belongs to no session", async () => {
    const { clock, look, child, started } = make();
    const pid = child(null);
    const on = await server("s1", { process: started[0]?.identity ?? null });
    for (let interval = 0; interval < 30; interval++) {
      await look(on);
      clock.jump(INTERVAL_MS);
    }
    expect(isRunning(pid)).toBe(true);
  });
});
