import { type ChildProcess, spawn } from "node:child_process";
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  approveAll,
  CopilotClient,
  type CopilotSession,
  RuntimeConnection,
  type SessionConfig,
} from "@github/copilot-sdk";
import { beforeEach, describe, expect, it, onTestFinished } from "vitest";
import { endsInsideTurn } from "../../src/runtime/history/session-events.js";
import { historyPath, isLoadedBy, listSessionFolders } from "../../src/runtime/history/session-state.js";
import { findRuntime } from "../../src/runtime/launch/versions.js";
import { type LoadedSession, type Look, TurnWatch, type WatchedTurn } from "../../src/serve/report/measurements.js";
import { eventually } from "../fixtures/eventually.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { startToolModel, type ToolModel } from "../fixtures/models/tool-model.js";
import { isRunning, killed } from "../fixtures/processes.js";
import { at, finalStep, prompt, resumed, toolStep } from "../fixtures/sessions/history.js";

const { from: PORT } = testPorts(1);

let home: string;
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "copilotfleet-watch-"));
  onTestFinished(() => rmSync(home, { recursive: true, force: true }));
});

/** A session whose history this test writes itself. */
function session(sessionId: string, text?: string): LoadedSession {
  mkdirSync(dirname(historyPath(home, sessionId)), { recursive: true });
  if (text !== undefined) writeFileSync(historyPath(home, sessionId), text);
  return { serverId: "s1", sessionId, home, isLoaded: true, launchedAtMs: 0 };
}

const append = ({ sessionId }: LoadedSession, text: string) => appendFileSync(historyPath(home, sessionId), text);

function summary({ ended, inFlight }: Look): string[] {
  return [
    ...ended.map(({ sessionId, outcome }) => `${sessionId} ${outcome}`),
    ...inFlight.map(({ sessionId }) => `${sessionId} in flight`),
  ];
}

describe("the turn watch", () => {
  it("TurnWatch.look counts a cut turn once, even if its session is loaded again without a recorded shutdown", () => {
    const watch = new TurnWatch();
    const a = session("a", prompt());
    watch.look([a], at());
    expect(summary(watch.look([{ ...a, isLoaded: false }], at() + 500))).toEqual(["a cut"]);
    expect(summary(watch.look([], at() + 700))).toEqual([]);
    expect(summary(watch.look([a], at() + 900))).toEqual([]);
    append(a, resumed() + prompt() + finalStep());
    expect(summary(watch.look([a], at()))).toEqual(["a completed"]);
  });

  it("TurnWatch.look names a history that cannot be read, and still reads the others", () => {
    const watch = new TurnWatch();
    const [a, b] = [session("a"), session("b", prompt())];
    symlinkSync(historyPath(home, "b"), historyPath(home, "a"));
    const look = watch.look([a, b], at());
    expect(look.unreadable).toMatchObject([{ serverId: "s1", sessionId: "a", error: { code: "ELOOP" } }]);
    expect(summary(look)).toEqual(["b in flight"]);
  });

  it("TurnWatch.look reads a limited amount per call, and repeated calls reach every session and miss no turn", () => {
    const watch = new TurnWatch({ lookBytes: 1024 * 1024 });
    const loaded = ["a", "b", "c", "d"].map((id) => session(id, ""));
    expect(watch.look(loaded, at()).isBehind).toBe(false);
    const big = { success: true, result: { content: "x".repeat(700_000) } };
    for (const one of loaded) append(one, prompt() + toolStep("1", big) + toolStep("2", big) + finalStep());
    append(session("e"), prompt());
    const seen: string[] = [];
    const begun = process.cpuUsage();
    let looks = 0;
    for (let isBehind = true; isBehind; looks++) {
      const look = watch.look(loaded, at());
      seen.push(...summary(look).filter((text) => text.endsWith("completed")));
      isBehind = look.isBehind;
    }
    expect(seen.sort()).toEqual(["a completed", "b completed", "c completed", "d completed"]);
    expect(looks).toBeGreaterThan(4);
    const { user, system } = process.cpuUsage(begun);
    expect((user + system) / 1000).toBeLessThan(5_000);
  });
});

/** A real runtime with one client, and a TurnWatch. Each method looks at the runtime's sessions through the watch. */
class Watched {
  readonly #watch = new TurnWatch();
  readonly #ended: WatchedTurn[] = [];
  readonly child: ChildProcess;
  readonly #model: ToolModel;
  client: CopilotClient;

  private constructor(child: ChildProcess, model: ToolModel) {
    this.child = child;
    this.#model = model;
    this.client = this.#connect();
  }

  static async start(model: ToolModel): Promise<Watched> {
    const flags = ["--headless", "--host", "127.0.0.1", "--port", String(PORT), "--no-auto-login", "--no-auto-update"];
    const env = { PATH: process.env.PATH, HOME: home, COPILOT_HOME: home, COPILOT_OFFLINE: "true" };
    const child = spawn(findRuntime(null, {}).path, flags, {
      cwd: home,
      env: { ...env, COPILOT_CONNECTION_TOKEN: "token" },
      stdio: ["ignore", "pipe", "ignore"],
    });
    let said = "";
    child.stdout?.on("data", (text) => (said += String(text)));
    onTestFinished(async () => {
      if (isRunning(child.pid ?? 0)) await killed(child.pid ?? null);
    });
    await eventually("the server", () => said.includes("listening"));
    return new Watched(child, model);
  }

  #connect(): CopilotClient {
    const connection = RuntimeConnection.forUri(`127.0.0.1:${PORT}`, { connectionToken: "token" });
    const client = new CopilotClient({ connection });
    onTestFinished(() => client.forceStop());
    return client;
  }

  async session(sessionId: string, over: Partial<SessionConfig> = {}): Promise<CopilotSession> {
    const provider = { type: "openai", wireApi: "completions", baseUrl: this.#model.baseUrl, apiKey: "k" } as const;
    const created = await this.client.createSession({
      sessionId,
      model: "gpt-5",
      onPermissionRequest: approveAll,
      provider,
      tools: [{ name: "rest", description: "r", parameters: { type: "object", properties: {} }, handler: rest }],
      ...over,
    });
    this.look();
    return created;
  }

  look(): Look {
    const pid = this.child.pid ?? 0;
    const ids = isRunning(pid) ? listSessionFolders(home).filter((id) => isLoadedBy(home, id, { pid })) : [];
    const look = this.#watch.look(
      ids.map((sessionId) => ({ serverId: "s1", sessionId, home, isLoaded: true, launchedAtMs: 0 })),
      Date.now(),
    );
    expect(look).toMatchObject({ unreadable: [], isBehind: false });
    this.#ended.push(...look.ended);
    return look;
  }

  /** Waits for the next `count` turns to end. */
  async ends(count = 1): Promise<WatchedTurn[]> {
    await eventually("the end of the turn", () => {
      this.look();
      return this.#ended.length >= count;
    });
    return this.#ended.splice(0);
  }

  async inFlight(sessionId: string): Promise<{ startedAtMs: number }> {
    return await eventually("the turn", () => this.look().inFlight.find((turn) => turn.sessionId === sessionId));
  }
}

async function rest({ ms = 300 }: { ms?: number } = {}): Promise<string> {
  await sleep(ms, undefined, { ref: false });
  return "rested";
}

describe("with the real runtime", () => {
  it("the turn watch sees the real runtime's plain, tool, queued, failed, aborted and cut turns", async () => {
    await using model = await startToolModel();
    const server = await Watched.start(model);
    const begun = Date.now();
    const session = await server.session("a");
    const one = (outcome: string) => [{ serverId: "s1", sessionId: "a", outcome, durationMs: expect.any(Number) }];
    const send = async (text: string) => void (await session.send({ prompt: text }));

    await send("!hold");
    const { startedAtMs } = await server.inFlight("a");
    expect(startedAtMs).toBeGreaterThanOrEqual(begun);
    await eventually("some time of the turn", () => model.held === 1 && Date.now() >= startedAtMs + 400);
    model.release();
    const [plain] = await server.ends();
    expect([plain]).toEqual(one("completed"));
    expect(plain?.durationMs).toBeGreaterThanOrEqual(400);
    expect(server.look().inFlight).toEqual([]);

    await send("!tool rest {}");
    const [tools] = await server.ends();
    expect([tools]).toEqual(one("completed"));
    expect(tools?.durationMs).toBeGreaterThanOrEqual(600);

    await send("!hold first");
    await send("!delay 200 second");
    await server.inFlight("a");
    await eventually("the model", () => model.held === 1);
    model.release();
    expect(await server.ends(2)).toEqual([...one("completed"), ...one("completed")]);

    await send("!fail");
    expect(await server.ends()).toEqual(one("failed"));
    await send("!empty");
    expect(await server.ends()).toEqual(one("failed"));

    await send("!delay 20000");
    await server.inFlight("a");
    await session.abort();
    expect(await server.ends()).toEqual(one("aborted"));
    const before = model.requests;
    await send('!tool rest {"ms":20000}');
    await eventually("the tool", () => model.requests > before);
    await session.abort();
    expect(await server.ends()).toEqual(one("aborted"));
    expect(endsInsideTurn(home, "a")).toBe(false);

    await send("!delay 20000");
    await server.inFlight("a");
    await session.disconnect();
    expect(await server.ends()).toEqual(one("cut"));
    expect(endsInsideTurn(home, "a", begun)).toBe(true);

    const other = await server.session("b");
    await other.send({ prompt: "!delay 100 !tool rest {}" });
    expect(await server.ends()).toMatchObject([{ sessionId: "b", outcome: "completed" }]);
    await other.send({ prompt: "!delay 20000" });
    await server.inFlight("b");
    expect(endsInsideTurn(home, "b")).toBe(true);
    await killed(server.child.pid ?? null);
    expect(await server.ends()).toMatchObject([{ sessionId: "b", outcome: "cut" }]);
    expect(endsInsideTurn(home, "b", begun)).toBe(true);
    expect(endsInsideTurn(home, "b", Date.now())).toBe(false);
  });

  it("the turn watch reports a turn as ended when the user refuses a tool, unless the user gives a reason", async () => {
    await using model = await startToolModel();
    const server = await Watched.start(model);
    const refused = await server.session("refused", { onPermissionRequest: () => ({ kind: "reject" }) });
    await refused.send({ prompt: "!tool rest {}" });
    expect(await server.ends()).toMatchObject([{ sessionId: "refused", outcome: "aborted" }]);
    const told = await server.session("told", { onPermissionRequest: () => ({ kind: "reject", feedback: "no" }) });
    await told.send({ prompt: "!tool rest {}" });
    expect(await server.ends()).toMatchObject([{ sessionId: "told", outcome: "completed" }]);
  });

  it("the turn watch counts a turn with a background sub-agent as one turn that ends when its report is answered", async () => {
    await using model = await startToolModel();
    const server = await Watched.start(model);
    const session = await server.session("a");
    const task = { agent_type: "general-purpose", name: "helper", description: "d", mode: "background" };
    let [begunAtMs, idleAtMs] = [0, 0];
    session.on("user.message", ({ timestamp }) => {
      begunAtMs ||= Date.parse(timestamp);
    });
    session.on("session.idle", ({ timestamp }) => {
      idleAtMs = Date.parse(timestamp);
    });
    await session.send({ prompt: `!tool task ${JSON.stringify({ ...task, prompt: "!delay 3000 help" })}` });
    const [turn] = await server.ends();
    expect(turn).toMatchObject({ sessionId: "a", outcome: "completed" });
    await eventually("the runtime's word", () => idleAtMs > 0);
    expect(server.look()).toMatchObject({ ended: [], inFlight: [] });
    expect(turn?.durationMs).toBeGreaterThanOrEqual(3_000);
    expect(Math.abs((turn?.durationMs ?? 0) - (idleAtMs - begunAtMs))).toBeLessThan(1_000);
  });
});
