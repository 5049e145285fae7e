import { setTimeout as delay } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { type FaultFleet, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { type Serving, serve } from "../fixtures/fleets/serve.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { seededRandom } from "../fixtures/random.js";
import { historyFiles, readHistory } from "../fixtures/sessions/session-history.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { ask, type Reply } from "../http/harness.js";

/** How many sessions have a request in progress at each kill. */
const LANES = rounds(2, 8);
const KILLS = rounds(3, 25);
const KEYS = LANES * KILLS;
/** Each request is sent at a random moment in this many milliseconds before a kill. A request takes about 400 ms. */
const AROUND_MS = 450;
/** The longest time for which a request is repeated until it is answered, in milliseconds. */
const ANSWER_MS = 120_000;
const SESSIONS = Array.from({ length: LANES }, (_, lane) => `keyed-${lane}`);
/** Codes that ask the client to try again. After such a refusal, the client may use the same idempotency key. */
const AGAIN = new Set(["FLEET_POOL_DRAINING", "FLEET_SESSION_BUSY", "FLEET_SESSION_LOCKED"]);

/** A `serve` with the HTTP API that a test kills and starts again. */
class Api {
  #serving: Promise<Serving>;
  readonly #fleet: FaultFleet;
  readonly #token: string;

  constructor(fleet: FaultFleet, token: string) {
    this.#fleet = fleet;
    this.#token = token;
    this.#serving = this.#start();
  }

  async #start(): Promise<Serving> {
    const env = { COPILOTFLEET_SERVE_HTTP: "127.0.0.1:0" };
    return await serve(this.#fleet, { args: ["--leave-running"], env });
  }

  async kill(): Promise<void> {
    const serving = await this.#serving;
    serving.kill("SIGKILL");
    await serving.done;
    this.#serving = this.#start();
  }

  async end(): Promise<void> {
    await (await this.#serving).end();
  }

  /** Repeats the request for as long as the answer asks the client to try again. */
  async turn(session: string, prompt: string, key: string): Promise<Reply> {
    let last: Reply | null = null;
    for (const end = performance.now() + ANSWER_MS; performance.now() < end; ) {
      const http = (await this.#serving).log().find(({ msg }) => msg === "serving")?.http;
      const headers = { "Idempotency-Key": key };
      const options = { token: this.#token, body: { prompt }, headers };
      const reply = await ask(String(http), "POST", `/v1/sessions/${session}/turns`, options).catch(() => null);
      if (reply !== null && !AGAIN.has(String(reply.json?.code))) return reply;
      last = reply;
      await delay(20);
    }
    throw new Error(`${key} has no answer: ${last?.text ?? "no connection"}`);
  }
}

/**
 * Sends one prompt twice under the same key: before the kill, and after it.
 * @returns the code of the error, "answered", or "answered again" if only the second request was answered
 */
async function keyed(
  { api, model, killed }: { api: Api; model: ScriptedModel; killed: Promise<void> },
  { session, prompt, key, afterMs }: { session: string; prompt: string; key: string; afterMs: number },
): Promise<string> {
  await delay(afterMs);
  const first = await api.turn(session, prompt, key);
  await killed;
  const again = await api.turn(session, prompt, key);
  const about = `${prompt} ${first.text} ${again.text}`;
  // If the server died before it began the prompt, the first request failed without a turn, and the second runs it.
  if (again.status === 200) {
    expect(again.json.reply, about).toBe(`you said: ${prompt}`);
    expect(model.shown(prompt), about).toBe(1);
    if (first.status === 200) expect(again.json.turn, about).toBe(first.json.turn);
    else expect(first.json, about).toMatchObject({ code: "FLEET_SERVER_LOST", retryable: true });
    return first.status === 200 ? "answered" : "answered again";
  }
  expect(again.status, about).toBe(first.status);
  expect(first.json.code, about).toMatch(/^FLEET_(SERVER_LOST|TURN_CUT|TURN_FAILED)$/);
  expect(model.shown(prompt), about).toBeLessThanOrEqual(1);
  return String(first.json.code);
}

async function retried(fleet: FaultFleet, model: ScriptedModel): Promise<void> {
  const random = seededRandom("kills");
  const token = JSON.parse(await fleet.ok(["token", "issue", "--user", "alice", "--json"])).token as string;
  for (const session of SESSIONS) await fleet.ok(["create", "--user", "alice", "--id", session, "--prompt", "first"]);
  const api = new Api(fleet, token);
  const outcomes: Record<string, number> = {};
  const cut: string[] = [];
  const sent: string[] = [];
  for (let kill = 0; kill < KILLS; kill++) {
    const victims = ["serve", "server", "both"][kill % 3] ?? "both";
    const [server] = await fleet.ps();
    const killed = delay(AROUND_MS).then(async () => {
      if (victims !== "serve" && server?.pid != null) process.kill(server.pid, "SIGKILL");
      if (victims !== "server") await api.kill();
    });
    const lanes = SESSIONS.map(async (session, lane) => {
      const prompt = `prompt-${kill}-${lane}.`;
      sent.push(prompt);
      const about = { session, prompt, key: `key-${kill}-${lane}`, afterMs: random() * AROUND_MS };
      const outcome = await keyed({ api, model, killed }, about);
      if (!outcome.startsWith("answered")) cut.push(prompt);
      outcomes[`${victims} ${outcome}`] = (outcomes[`${victims} ${outcome}`] ?? 0) + 1;
    });
    await Promise.all(lanes);
  }
  await api.end();
  console.log(JSON.stringify(outcomes));
  const turns = SESSIONS.flatMap((session) => readHistory(...(historyFiles(fleet.root, session) as [string])).turns);
  const prompts = turns.map((turn) => turn.prompt).filter((prompt) => prompt.startsWith("prompt-"));
  expect(new Set(prompts).size).toBe(prompts.length);
  expect([...new Set([...prompts, ...cut])].sort()).toEqual(sent.sort());
}

async function modelled(more: NodeJS.ProcessEnv = {}): Promise<void> {
  const model = await startScriptedModel();
  onTestFinished(async () => await model[Symbol.asyncDispose]());
  const fleet = await faultFleet({
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
    COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
    COPILOTFLEET_SESSION_MODEL: "gpt-5",
    MODEL_KEY: "key",
    ...more,
  });
  await retried(fleet, model);
}

it(`each of ${KEYS} idempotency keys begins at most one turn while serve and servers are killed`, async () => {
  await modelled();
});

it.skipIf(redisProblem() !== undefined)(`with Redis, ${KEYS} idempotency keys begin at most 1 turn each`, async () => {
  const redis = await RedisServer.start();
  onTestFinished(async () => await redis.end());
  await modelled({ COPILOTFLEET_STORE: redis.url() });
});
