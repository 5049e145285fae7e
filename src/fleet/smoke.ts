import { setTimeout as delay } from "node:timers/promises";
import type { CopilotSession } from "@github/copilot-sdk";
import { isFleetError } from "../base/errors.js";
import { withoutSettings } from "../config/load/environment.js";
import type { PartialConfig } from "../config/load/load.js";
import { Fleet } from "./fleet.js";
import { withTrialFleet } from "./versions.js";

export interface SmokeStep {
  name: string;
  ok: boolean;
  ms: number;
  /** The result of the step, or the reason for its failure. */
  detail: string;
}

export interface SmokeResult {
  ok: boolean;
  steps: SmokeStep[];
}

const USER = "smoke";
const SESSION = "smoke-session";
/**
 * How long a restart may take, in milliseconds: long, because a busy machine is several times slower than an idle one.
 */
const RESTART_MS = 30_000;

export interface SmokeOptions {
  env: NodeJS.ProcessEnv;
  /** When it aborts, a waiting step ends at once. Any other step runs to its end, and no further step begins. */
  signal: AbortSignal;
}

/**
 * Tries every kind of work once on the real runtime, offline, in a temporary state folder. Stops at the first step that
 * fails. The built-in echo model counts the turns that it receives, so its replies prove that no history is lost.
 */
export async function smoke({ env, signal }: SmokeOptions, onStep: (step: SmokeStep) => void): Promise<SmokeResult> {
  const config: PartialConfig = {
    provider: { type: "echo" },
    isolation: "per-user",
    serve: { metrics: "127.0.0.1:0", listen: "127.0.0.1:0" },
  };
  const offline = { ...withoutSettings(env), COPILOT_OFFLINE: "true" };
  return await withTrialFleet({ env: offline, config }, async (first, options) => {
    // Like two commands, these two fleets share only the state folder.
    await using second = await Fleet.open(options);
    const steps: SmokeStep[] = [];
    for (const [name, run] of Object.entries(walk(first, second, signal))) {
      signal.throwIfAborted();
      const start = performance.now();
      const result = await run().then(
        (detail) => ({ ok: true, detail }),
        (error: unknown) => ({ ok: false, detail: error instanceof Error ? error.message : String(error) }),
      );
      if (!result.ok) signal.throwIfAborted();
      const step = { name, ok: result.ok, ms: Math.round(performance.now() - start), detail: result.detail };
      steps.push(step);
      onStep(step);
      if (!step.ok) break;
    }
    return { ok: steps.every(({ ok }) => ok), steps };
  });
}

function walk(first: Fleet, second: Fleet, signal: AbortSignal): Record<string, () => Promise<string>> {
  let session: CopilotSession | undefined;
  const ask = async (fleet: Fleet, open: CopilotSession | undefined, prompt: string, expected: string) => {
    if (open === undefined) throw new Error("no session is open");
    const { text } = await fleet.sessions.send(open, prompt, { timeout: 30_000, signal });
    if (text !== expected)
      throw new Error(`the reply was ${JSON.stringify(text)} instead of ${JSON.stringify(expected)}`);
    return text;
  };
  return {
    spawn: async () => {
      const { server, created } = await first.servers.spawn(USER);
      check(created, "the server ran before it was started");
      check((await second.servers.spawn(USER)).server.pid === server.pid, "a second spawn started a second server");
      return `${server.url}, pid ${server.pid}, runtime ${server.version}`;
    },
    create: async () => {
      session = await first.sessions.create({ user: USER, sessionId: SESSION });
      return session.sessionId;
    },
    send: async () => await ask(first, session, "hello", "[turn 1] hello"),
    resume: async () => {
      if (session !== undefined) await first.sessions.leave(session);
      session = await second.sessions.resume(SESSION, { user: USER });
      return await ask(second, session, "again", "[turn 2] again");
    },
    ownership: async () => {
      const opening = second.sessions.resume(SESSION, { user: "stranger" });
      const isRefused = (error: unknown) => isFleetError(error, "FLEET_SESSION_NOT_FOUND");
      check(await opening.then(() => false, isRefused), "it was let in");
      return "refused to another user";
    },
    crash: async () => {
      const { pid } = await second.servers.ofUser(USER);
      check(pid !== null, "no server runs");
      process.kill(pid, "SIGKILL");
      while ((await first.servers.ofUser(USER)).pid !== null) await delay(5, undefined, { signal });
      session = await first.sessions.resume(SESSION, { user: USER });
      return await ask(first, session, "still there?", "[turn 3] still there?");
    },
    supervise: async () => {
      const supervisor = await first.pool.supervise({ log: () => undefined });
      try {
        const { pid } = await second.servers.ofUser(USER);
        check(pid !== null, "no server runs");
        process.kill(pid, "SIGKILL");
        const start = performance.now();
        for (let now: number | null = pid; now === pid || now === null; now = (await second.servers.ofUser(USER)).pid) {
          check(performance.now() - start < RESTART_MS, "it was not restarted");
          await delay(20);
        }
        const ms = Math.round(performance.now() - start);
        return `back after ${ms} ms, ${await ask(first, session, "and now?", "[turn 4] and now?")}`;
      } finally {
        await supervisor.leave();
      }
    },
    evict: async () => {
      const { evicted } = await second.sessions.evict({ ids: [SESSION] });
      check(evicted.includes(SESSION), "it was not evicted");
      return await ask(first, session, "loaded again?", "[turn 5] loaded again?");
    },
    lock: async () => {
      const options = { user: USER, ttl: "10s", wait: "1s" };
      await second.leases.hold(SESSION, options, async (lease) => {
        check((await first.leases.get(SESSION))?.fence === lease.fence, "the lease is not shown");
        const other = await first.leases
          .hold(SESSION, { ...options, wait: "50ms" }, async () => true)
          .catch(() => false);
        check(!other, "two held it at once");
      });
      check((await first.leases.get(SESSION)) === null, "it is still held");
      return "held, refused to a second, released";
    },
    list: async () => {
      const listed = await second.sessions.list({ user: USER });
      const [only] = listed;
      check(listed.length === 1 && only?.id === SESSION && only.state === "active", "it is not listed as active");
      return `${listed.length} session, ${only.sizeBytes} bytes`;
    },
    delete: async () => {
      if (session !== undefined) await first.sessions.leave(session);
      await second.sessions.delete([SESSION], { user: USER });
      check((await second.sessions.list({ user: USER })).length === 0, "it is still listed");
      return "gone";
    },
    gc: async () => {
      await first.sessions.leave(await first.sessions.create({ user: USER, sessionId: "old" }));
      await delay(20);
      const { deleted } = await second.sessions.gc({ ttl: "10ms" });
      check(deleted.map(({ id }) => id).join() === "old", `gc deleted ${deleted.map(({ id }) => id).join()}`);
      return "only the expired session";
    },
    stop: async () => {
      const { id, pid } = await first.servers.ofUser(USER);
      const [stopped] = (await first.servers.stop([id])).stopped;
      check(stopped?.outcome === "drained", `the outcome was ${stopped?.outcome}`);
      check((await second.servers.ofUser(USER)).pid === null, `process ${pid} still runs`);
      return stopped.outcome;
    },
  };
}

function check(condition: boolean, otherwise: string): asserts condition {
  if (!condition) throw new Error(otherwise);
}
