/**
 * Measures `usage --since 24h` with a million lines, and turns with the ledger beside turns without it, in one run.
 *
 * Run: npm run build && npx tsx bench/usage.ts
 */
import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { openParts } from "../src/fleet/parts.js";
import { Fleet } from "../src/index.js";
import { type LedgerLine, UNREPORTED, USAGE_BY } from "../src/model/usage/usage.js";
import { startEchoModel } from "../src/models/echo.js";
import { openFileStore } from "../src/store/file/file-store.js";
import type { UsageStore } from "../src/store/usage/port.js";
import { COMMAND, claim, compare, median, printMachine, ratio, withState } from "./measure.js";

const LINES = 1_000_000;
const DAY_MS = 24 * 3_600_000;
const LIMIT_MS = 300;

printMachine();
await withState(async (env) => {
  const usage = openFileStore(String(env.COPILOTFLEET_HOME)).usage;
  const now = Date.now();
  for (let at = 0; at < LINES; at += 1_000) {
    usage.append(
      Array.from({ length: 500 }, (_, index) => linesOf(now - DAY_MS * 1.2 * (1 - (at + 2 * index) / LINES))).flat(),
    );
  }
  const ask = (by: string) => {
    const begun = performance.now();
    execFileSync(process.execPath, [COMMAND, "usage", "--since", "24h", "--by", by, "--json"], {
      env,
      maxBuffer: 2 ** 28,
    });
    return performance.now() - begun;
  };
  console.log(`first usage, which adds up the segments: ${ask("user").toFixed(0)} ms`);
  for (const by of USAGE_BY) {
    const ms = median(Array.from({ length: 7 }, () => ask(by)));
    claim(`usage --since 24h --by ${by} with ${LINES} lines, in ${LIMIT_MS} ms`, ms / LIMIT_MS, 1);
  }
});

await withState(async (env) => {
  const model = await startEchoModel();
  const config = {
    provider: { type: "openai", baseUrl: model.baseUrl, apiKeyEnv: "BENCH_KEY", wireApi: "completions" } as const,
  };
  const open = (name: string, isMetered: boolean) => {
    const state = join(String(env.COPILOTFLEET_HOME), name);
    const parts = openParts({ env: { ...env, COPILOTFLEET_HOME: state, BENCH_KEY: "bench" }, config });
    // Without the ledger, everything else stays.
    if (!isMetered)
      Object.assign(parts.store.usage, { append: ((lines) => lines.length) satisfies UsageStore["append"] });
    return Reflect.construct(Fleet, [parts]) as Fleet;
  };
  await using metered = open("metered", true);
  await using plain = open("plain", false);
  const sessions = await Promise.all(
    [metered, plain].map(async (fleet) => await fleet.sessions.create({ user: "bench" })),
  );
  const turn = async (fleet: Fleet, index: number) => {
    const session = sessions[index];
    if (session !== undefined) await fleet.sessions.send(session, "hello");
    return undefined;
  };
  const medians = await compare(150, [
    { name: "turn, without the ledger", round: async () => await turn(plain, 1) },
    { name: "turn, with the ledger", round: async () => await turn(metered, 0) },
  ]);
  claim("turn with the ledger", ratio(medians, "turn, with the ledger", "turn, without the ledger"), 1.03);
  for (const fleet of [metered, plain]) {
    const servers = await fleet.servers.list();
    await fleet.servers.stop(
      servers.map(({ id }) => id),
      { force: true },
    );
  }
  await model.close();
});

/** The two lines of a request, of one of 500 users and 5,000 sessions. */
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
  return [begun, { ...begun, inputTokens: 1_000, outputTokens: 100, cacheReadTokens: 500, ms: 900, outcome: "ended" }];
}
