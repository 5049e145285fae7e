import { setTimeout as delay } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { ask, type Reply } from "../api/harness.js";
import { type FaultFleet, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { type Serving, serve } from "../fixtures/fleets/serve.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { seededRandom } from "../fixtures/random.js";
import { historyFiles, readHistory } from "../fixtures/sessions/session-history.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const KEYS = rounds(6, 200);
/** The kill comes within this time after the request, in milliseconds. A request takes about 400 ms. */
const AROUND_MS = 450;
const SESSION = "keyed";
/** Codes that ask the client to try again, and leave the key free or the turn as it is. */
const AGAIN = new Set(["FLEET_DOOR_DRAINING", "FLEET_SESSION_BUSY", "FLEET_SESSION_LOCKED", "FLEET_POOL_DRAINING"]);

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

  /** Sends the request until something answers it. */
  async turn(prompt: string, key: string): Promise<Reply> {
    for (;;) {
      const http = (await this.#serving).log().find(({ msg }) => msg === "serving")?.http;
      const headers = { "Idempotency-Key": key };
      const options = { token: this.#token, body: { prompt }, headers };
      const reply = await ask(String(http), "POST", `/v1/sessions/${SESSION}/turns`, options).catch(() => null);
      if (reply !== null && !AGAIN.has(String(reply.json?.code))) return reply;
      await delay(20);
    }
  }
}

async function retried(fleet: FaultFleet, model: ScriptedModel): Promise<void> {
  const random = seededRandom("kills");
  const token = JSON.parse(await fleet.ok(["token", "issue", "--user", "alice", "--json"])).token as string;
  await fleet.ok(["create", "--user", "alice", "--id", SESSION, "--prompt", "first"]);
  const api = new Api(fleet, token);
  const outcomes: Record<string, number> = {};
  const cut: string[] = [];
  for (let round = 0; round < KEYS; round++) {
    const prompt = `prompt-${round}.`;
    const key = `key-${round}`;
    const victims = ["serve", "server", "both"][round % 3] ?? "both";
    const [server] = await fleet.ps();
    const killed = delay(random() * AROUND_MS).then(async () => {
      if (victims !== "serve" && server?.pid != null) process.kill(server.pid, "SIGKILL");
      if (victims !== "server") await api.kill();
    });
    const first = await api.turn(prompt, key);
    await killed;
    const again = await api.turn(prompt, key);
    const about = `${prompt} ${victims}: ${first.text} ${again.text}`;
    expect(again.status, about).toBe(first.status);
    if (first.status === 200) {
      expect(first.json.reply, about).toBe(`you said: ${prompt}`);
      expect(again.json, about).toMatchObject({ reply: first.json.reply, turn: first.json.turn });
      expect(model.shown(prompt), about).toBe(1);
    } else {
      expect(first.json.code, about).toMatch(/^FLEET_(SERVER_LOST|TURN_CUT|TURN_FAILED)$/);
      expect(model.shown(prompt), about).toBeLessThanOrEqual(1);
      cut.push(prompt);
    }
    const outcome = `${victims} ${first.json.code ?? "answered"}`;
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  }
  await api.end();
  console.log(JSON.stringify(outcomes));
  const { turns } = readHistory(...(historyFiles(fleet.root, SESSION) as [string]));
  const prompts = turns.map((turn) => turn.prompt).filter((prompt) => prompt.startsWith("prompt-"));
  expect(new Set(prompts).size).toBe(prompts.length);
  const wanted = Array.from({ length: KEYS }, (_, round) => `prompt-${round}.`);
  expect([...new Set([...prompts, ...cut])].sort()).toEqual(wanted.sort());
}

async function modelled(more: NodeJS.ProcessEnv = {}): Promise<void> {
  const model = await startScriptedModel();
  onTestFinished(async () => await model[Symbol.asyncDispose]());
  const fleet = await faultFleet({
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
    COPILOTFLEET_PROVIDER_API_KEY_ENV: "MODEL_KEY",
    COPILOTFLEET_SESSION_MODEL: "gpt-5",
    MODEL_KEY: "key",
    ...more,
  });
  await retried(fleet, model);
}

it(`each of ${KEYS} keys is one turn while serve and servers are killed`, async () => {
  await modelled();
});

it.skipIf(redisProblem() !== undefined)(`each of ${KEYS} keys is one turn with Redis, too`, async () => {
  const redis = await RedisServer.start();
  onTestFinished(async () => await redis.end());
  await modelled({ COPILOTFLEET_STORE: redis.url() });
});
