import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import type { UsageReport } from "../../src/accounts/ledger.js";
import type { LedgerLine } from "../../src/base/usage.js";
import { SqliteLedger } from "../../src/store/sqlite/ledger.js";
import type { TestFleet } from "../fixtures/commands/cli.js";
import { faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { type Serving, serve } from "../fixtures/fleets/serve.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { type CountingModel, startCountingModel } from "../fixtures/models/counting-model.js";
import { seededRandom } from "../fixtures/random.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { ask } from "../http/harness.js";

const USERS = rounds(4, 50);
const TURNS = rounds(40, 10_000);
const KILLS = rounds(2, 60);
/** How many users have a turn at the same time. */
const LANES = rounds(4, 8);
const TIMEOUT_MS = rounds(240_000, 3 * 60 * 60_000);
/** The longest time for which a turn is repeated until it is answered, in milliseconds. */
const ANSWER_MS = 180_000;
const SERVE_ENV = { COPILOTFLEET_SERVE_HTTP: "127.0.0.1:0", COPILOTFLEET_SERVE_LISTEN: "127.0.0.1:0" };

/** A host with a `serve` that the test kills and starts again. */
class Killed {
  #serving: Promise<Serving>;

  constructor(readonly fleet: TestFleet) {
    this.#serving = this.#start();
  }

  async #start(): Promise<Serving> {
    return await serve(this.fleet, { args: ["--leave-running"], env: SERVE_ENV, withinMs: 90_000 });
  }

  async address(): Promise<string> {
    const entry = (await this.#serving).log().find(({ msg }) => msg === "serving");
    return String(entry?.http);
  }

  async kill(): Promise<void> {
    const serving = await this.#serving;
    serving.kill("SIGKILL");
    await serving.done;
    this.#serving = this.#start();
  }

  async killServer(random: () => number): Promise<void> {
    const running = this.fleet.servers();
    const pid = running[Math.floor(random() * running.length)];
    if (pid !== undefined) process.kill(pid, "SIGKILL");
  }

  async end(): Promise<void> {
    await (await this.#serving).end();
  }
}

type Counted = Pick<LedgerLine, "id" | "user" | "outcome" | "inputTokens" | "outputTokens">;

/** The ledger's lines about requests, from the state folders of all hosts. */
async function linesOf(fleets: readonly TestFleet[]): Promise<Counted[]> {
  const nothing = () => undefined;
  const found = fleets.map(async ({ root }) => {
    const ledger = new SqliteLedger(join(root, "ledger.db"), { checkFolder: nothing, ensureFolder: nothing });
    const { lines } = await ledger.oldest(Number.MAX_SAFE_INTEGER);
    await ledger.close();
    return lines.filter(({ kind }) => kind === "request");
  });
  return (await Promise.all(found)).flat();
}

/** The ledger's lines about requests in Redis, which has no outcome of an ended request. */
async function linesInRedis({ client }: RedisServer): Promise<Counted[]> {
  const [namesKey = ""] = await client.keys("*:ledger-names");
  const names = await client.hgetall(namesKey);
  const lines: Counted[] = [];
  for (const key of await client.keys("*:ledger-lines:*"))
    for (const [field, text] of Object.entries(await client.hgetall(key))) {
      const [, cell, counts] = JSON.parse(text) as [number, string, (number | null)[]];
      const [user = ""] = JSON.parse(cell) as string[];
      const [turns, , inputTokens = null, outputTokens = null] = counts;
      const outcome = field.startsWith("b") ? "begun" : "failed";
      const line = { id: field.slice(1), user: names[user]?.replace("user:", "") ?? "", inputTokens, outputTokens };
      if (turns === 0) lines.push({ ...line, outcome });
    }
  return lines;
}

/**
 * Sends prompts of many users while `serve` and servers are killed, and compares the ledger with the model's own count.
 */
async function compared(
  fleets: readonly TestFleet[],
  model: CountingModel,
  random: () => number,
  recorded: () => Promise<Counted[]>,
): Promise<void> {
  const [first] = fleets;
  if (first === undefined) throw new Error("there is no host");
  const hosts = fleets.map((fleet) => new Killed(fleet));
  const users = Array.from({ length: USERS }, (_, index) => `user-${index}0`);
  // The name of a user decides which of the hosts that run serve gets the user. So first wait until every host runs
  // serve. Otherwise, one host would get all users.
  for (const host of hosts) await host.address();
  const tokens = new Map<string, string>();
  for (const user of users) {
    const issued = await first.run(["token", "issue", "--user", user, "--json"]);
    tokens.set(user, (JSON.parse(issued.stdout) as { token: string }).token);
  }
  const request = async (user: string, path: string, body: object) => {
    for (const end = performance.now() + ANSWER_MS; performance.now() < end; await delay(20)) {
      const host = hosts[Math.floor(random() * hosts.length)];
      const url = (await host?.address()) ?? "";
      const token = tokens.get(user) ?? "";
      const reply = await ask(url, "POST", path, { token, body }).catch(() => null);
      // The answer 502 means that the turn was cut, so it is over. Any other failure is tried again.
      if (reply !== null && (reply.status < 300 || reply.status === 502)) return;
      if (reply?.json?.code === "FLEET_SESSION_EXISTS") return;
    }
    throw new Error(`${user} has no answer at ${path}`);
  };
  let left = TURNS;
  let answered = 0;
  const lanes = Array.from({ length: LANES }, async (_, lane) => {
    const own = users.filter((_user, index) => index % LANES === lane);
    for (const user of own) await request(user, "/v1/sessions", { id: `of-${user}` });
    while (left-- > 0) {
      const user = own[Math.floor(random() * own.length)] ?? "";
      await request(user, `/v1/sessions/of-${user}/turns`, { prompt: `turn ${left} of ${user}.` });
      answered++;
    }
  });
  const killing = (async () => {
    for (let kill = 1; kill <= KILLS; kill++) {
      while (answered < (TURNS * kill) / (KILLS + 1)) await delay(5);
      const host = hosts[Math.floor(random() * hosts.length)];
      if (kill % 3 !== 1) await host?.killServer(random);
      if (kill % 3 !== 2) await host?.kill();
    }
  })();
  await Promise.all([...lanes, killing]);
  for (const host of hosts) await host.end();

  const lines = await recorded();
  const begun = lines.filter(({ outcome }) => outcome === "begun");
  const ended = new Map(lines.filter(({ outcome }) => outcome !== "begun").map((line) => [line.id, line]));
  // No line is duplicated or lost: each request that the model has seen has one `begun` line in the ledger.
  expect(new Set(begun.map(({ id }) => id)).size).toBe(begun.length);
  expect(ended.size).toBe(lines.length - begun.length);
  const known = new Set(begun.map(({ id }) => id));
  expect([...model.requests.keys()].filter((id) => !known.has(id))).toEqual([]);
  // A process may be killed between writing this line and sending the request, and one kill can hit all lanes then.
  const unsent = begun.filter(({ id }) => !model.requests.has(id));
  expect(unsent.filter(({ id }) => ended.has(id))).toEqual([]);
  expect(unsent.length).toBeLessThanOrEqual(KILLS * LANES);
  // The ledger's tokens are those that the model counted, or an estimate or unknown if the answer was cut.
  let unknown = 0;
  for (const [id, { user, inputTokens, outputTokens, isWhole }] of model.requests) {
    const line = ended.get(id);
    if (line?.outcome === "completed") expect(line, id).toMatchObject({ user, inputTokens, outputTokens });
    else if (line?.inputTokens == null && isWhole) unknown++;
  }
  // If a process is killed before the last bytes of an answer reach it, the ledger never gets the answer's tokens.
  expect(unknown).toBeLessThanOrEqual(KILLS * LANES);
  console.log(
    `${begun.length} requests, ${unsent.length} of them never sent, ${unknown} whole answers to killed processes`,
  );

  const report = JSON.parse((await first.run(["usage", "--by", "user", "--json"])).stdout) as UsageReport;
  for (const user of users) {
    const row = report.usage.find(({ key }) => key === user);
    const own = begun.filter((line) => line.user === user);
    const sum = (field: "inputTokens" | "outputTokens") =>
      own.reduce((total, { id }) => total + (ended.get(id)?.[field] ?? 0), 0);
    const tokens = { inputTokens: sum("inputTokens"), outputTokens: sum("outputTokens") };
    expect(row, user).toMatchObject({ requests: own.length, ...tokens });
  }
}

it(
  `the ledger on one host equals the model's own count of ${TURNS} turns of ${USERS} users, while serve and servers are killed`,
  async () => {
    const random = seededRandom("usage");
    const model = await startCountingModel(random);
    onTestFinished(async () => await model[Symbol.asyncDispose]());
    const fleets = [await faultFleet(model.env)];
    await compared(fleets, model, random, async () => await linesOf(fleets));
  },
  TIMEOUT_MS,
);

it.skipIf(redisProblem() !== undefined)(
  `the ledger of two hosts with Redis equals the model's own count of ${TURNS} turns, while serve and servers are killed`,
  async () => {
    const random = seededRandom("usage of hosts");
    const model = await startCountingModel(random);
    onTestFinished(async () => await model[Symbol.asyncDispose]());
    const redis = await RedisServer.start();
    onTestFinished(async () => await redis.end());
    await using hosts = new TestHosts({ redis, names: ["a", "b"], storage: "local", env: model.env });
    await compared([hosts.host("a"), hosts.host("b")], model, random, async () => await linesInRedis(redis));
  },
  TIMEOUT_MS,
);
