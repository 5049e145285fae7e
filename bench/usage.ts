/**
 * Measures `usage --since 24h` with a million lines in files and in Redis. Compares turns with the ledger, the limits
 * and the audit log with turns without them.
 *
 * Run: npm run build && npx tsx bench/usage.ts [files|redis|turns] (redis needs redis-server)
 */
import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { type LedgerLine, UNREPORTED, USAGE_BY } from "../src/base/usage.js";
import { openParts } from "../src/fleet/parts.js";
import { Fleet } from "../src/index.js";
import { startEchoModel } from "../src/providers/echo.js";
import { openStore } from "../src/store/store.js";
import { RedisServer } from "../test/fixtures/store/redis-server.js";
import { COMMAND, claim, median, printMachine, withState } from "./measure.js";

const LINES = 1_000_000;
const DAY_MS = 24 * 3_600_000;
const LIMIT_MS = 300;
const WARM_UP = 100;
const PAIRS = 500;

printMachine();
const MEASURED = { files: measureFiles, redis: measureRedis, turns: measureTurns };
for (const [name, measure] of Object.entries(MEASURED))
  if ([undefined, name].includes(process.argv[2])) await withState(measure);

async function measureFiles(env: NodeJS.ProcessEnv): Promise<void> {
  await measureReport("file", env);
}

async function measureRedis(env: NodeJS.ProcessEnv): Promise<void> {
  const redis = await RedisServer.start();
  try {
    await measureReport(redis.url(), env);
  } finally {
    await redis.end();
  }
}

async function measureReport(url: string, state: NodeJS.ProcessEnv): Promise<void> {
  const env: NodeJS.ProcessEnv = { ...state, COPILOTFLEET_STORE: url };
  const store = openStore(url, String(env.COPILOTFLEET_HOME));
  const { usage } = store;
  const now = Date.now();
  for (let at = 0; at < LINES; at += 1_000) {
    usage.append(
      Array.from({ length: 500 }, (_, index) => linesOf(now - DAY_MS * 1.2 * (1 - (at + 2 * index) / LINES))).flat(),
    );
  }
  await usage.settled();
  await store.close();
  const ask = (by: string) => {
    const begun = performance.now();
    execFileSync(process.execPath, [COMMAND, "usage", "--since", "24h", "--by", by, "--json"], {
      env,
      maxBuffer: 2 ** 28,
    });
    return performance.now() - begun;
  };
  console.log(`first usage, which adds up lines: ${ask("user").toFixed(0)} ms`);
  for (const by of USAGE_BY) {
    const ms = median(Array.from({ length: 7 }, () => ask(by)));
    claim(`usage --since 24h --by ${by} with ${LINES} lines, ${store.kind}, in ${LIMIT_MS} ms`, ms / LIMIT_MS, 1);
  }
}

/** Runs turns in one session. Only every second turn uses the ledger, limits and audit log. All else is the same. */
async function measureTurns(env: NodeJS.ProcessEnv): Promise<void> {
  const model = await startEchoModel();
  const config = {
    provider: { type: "openai", baseUrl: model.baseUrl, apiKey: { env: "BENCH_KEY" }, wireApi: "completions" } as const,
  };
  const parts = openParts({ env: { ...env, BENCH_KEY: "bench" }, config });
  const { usage, limits } = parts.store;
  let isOn = true;
  switchMethod(
    usage,
    "append",
    () => isOn,
    (lines) => lines.length,
  );
  switchMethod(
    limits,
    "read",
    () => isOn,
    async () => null,
  );
  switchMethod(
    parts.events,
    "note",
    () => isOn,
    () => undefined,
  );
  await using fleet = Reflect.construct(Fleet, [parts]) as Fleet;
  const many = 1_000_000_000;
  await fleet.limits.set("bench", {
    ...{ turnsPerMinute: many, concurrentTurns: many, tokensPerDay: many, tokensPerMonth: many },
  });
  const session = await fleet.sessions.create({ user: "bench" });
  const turn = async (isMetered: boolean) => {
    isOn = isMetered;
    const begun = performance.now();
    await fleet.sessions.send(session, "hello");
    return performance.now() - begun;
  };
  for (let index = 0; index < WARM_UP; index++) await turn(true);
  const ratios: number[] = [];
  for (let index = 0; index < PAIRS; index++) {
    const isFirst = index % 2 === 0;
    const [one, other] = [await turn(isFirst), await turn(!isFirst)];
    ratios.push(isFirst ? one / other : other / one);
  }
  claim(`turn with ledger, limits and events, median of ${PAIRS} pairs`, median(ratios), 1.03);
  const servers = await fleet.servers.list();
  await fleet.servers.stop(
    servers.map(({ id }) => id),
    { force: true },
  );
  await model.close();
}

/** Replaces a method with `other` while `isOn` returns false. */
function switchMethod<T extends object, K extends keyof T>(on: T, name: K, isOn: () => boolean, other: T[K]): void {
  const own = on[name] as (...args: unknown[]) => unknown;
  const off = other as (...args: unknown[]) => unknown;
  Object.assign(on, { [name]: (...args: unknown[]) => (isOn() ? own.apply(on, args) : off(...args)) });
}

/** Returns the two ledger lines of a request of one of 500 users, in one of 5,000 sessions. */
function linesOf(at: number): LedgerLine[] {
  const one = Math.floor(Math.random() * 5_000);
  const user = `user-${one % 500}`;
  const begun: LedgerLine = {
    id: randomUUID(),
    at: new Date(at).toISOString(),
    kind: "request",
    user,
    sessionId: `session-${one}`,
    model: one % 3 === 0 ? "gpt-5" : "gpt-5-mini",
    host: null,
    tokenId: `token-${one % 500}`,
    ...UNREPORTED,
    ms: null,
    outcome: "begun",
  };
  return [
    begun,
    { ...begun, inputTokens: 1_000, outputTokens: 100, cacheReadTokens: 500, ms: 900, outcome: "completed" },
  ];
}
