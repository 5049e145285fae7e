import { afterAll, beforeAll, expect, it } from "vitest";
import type { UsageReport } from "../../src/accounts/ledger.js";
import { tokenIdIn } from "../../src/identity/tokens.js";
import { TestApi } from "./harness.js";

let at: TestApi;
let alice: string;
let root: string;
const begun = new Date().toISOString();

beforeAll(async () => {
  at = await TestApi.open();
  alice = await at.token("alice");
  root = await at.token("root", ["admin", "use"]);
  for (const [token, id] of [
    [alice, "of-alice"],
    [await at.token("bob"), "of-bob"],
  ]) {
    await at.ok("POST", "/v1/sessions", { token, body: { id } });
    await at.ok("POST", `/v1/sessions/${id}/turns`, { token, body: { prompt: "hello" } });
  }
});
afterAll(async () => await at[Symbol.asyncDispose]());

const usage = async (token: string, query = "") =>
  (await at.ok("GET", `/v1/usage${query}`, { token })).json as UsageReport;

it("GET /v1/usage with any `by` shows only the caller's usage, and refuses that of another user with 403", async () => {
  const { by, usage: rows, total, from, to } = await usage(alice);
  expect({ by, rows }).toEqual({
    by: "user",
    rows: [
      {
        ...{ key: "alice", turns: 1, requests: 1, inputTokens: expect.any(Number), outputTokens: expect.any(Number) },
        ...{ cacheReadTokens: expect.toSatisfy((value) => value === null || value === 0), credits: null, cost: null },
      },
    ],
  });
  expect(total.requests).toBe(1);
  expect(Date.parse(to) - Date.parse(from)).toBe(24 * 3_600_000);
  for (const [kind, key] of [
    ["session", "of-alice"],
    ["token", tokenIdIn(alice)],
    ["model", "gpt-5"],
  ])
    expect((await usage(alice, `?by=${kind}&user=alice`)).usage.map((row) => row.key)).toEqual([key]);
  // Midnight may have passed since the turn.
  const [day] = (await usage(alice, "?by=day")).usage;
  expect([begun.slice(0, 10), to.slice(0, 10)]).toContain(day?.key);
  const foreign = await at.ask("GET", "/v1/usage?user=bob", { token: alice });
  expect([foreign.status, foreign.json.code]).toEqual([403, "FLEET_SCOPE_MISSING"]);
});

it("GET /v1/usage with the scope admin shows all users, or the one that the query names", async () => {
  const keys = async (query?: string) => (await usage(root, query)).usage.map(({ key }) => key).sort();
  expect(await keys()).toEqual(["alice", "bob"]);
  expect(await keys("?user=bob")).toEqual(["bob"]);
  expect(await keys(`?since=${new Date(Date.now() + 60_000).toISOString()}`)).toEqual([]);
});

it("the library and the command report the same usage, and unknown options are refused", async () => {
  const { usage: rows } = await at.fleet.usage.report({ by: "session", since: "1h" });
  const printed = await at.commands.json<UsageReport>(["usage", "--by", "session"]);
  expect(printed.usage).toEqual(rows);
  const csv = await at.commands.ok(["usage", "--user", "alice", "--output", "csv"]);
  expect(csv).toMatch(/^key,turns,requests,inputTokens,cacheReadTokens,outputTokens,credits,cost\r?\nalice,1,1,\d+,/);
  for (const query of ["?by=host", "?since=yesterday", "?host=a"])
    expect((await at.ask("GET", `/v1/usage${query}`, { token: root })).status, query).toBe(422);
  await expect(at.fleet.usage.report({ by: "host" as "user" })).rejects.toMatchObject({ code: "FLEET_USAGE_INVALID" });
});
