import { afterAll, beforeAll, expect, it, onTestFinished, vi } from "vitest";
import type { FleetEvent } from "../../src/base/event.js";
import { EVENT_ROUTES } from "../../src/http/routes/events.js";
import { TestApi, used } from "./harness.js";

let at: TestApi;
beforeAll(async () => {
  used.clear();
  at = await TestApi.open();
});
afterAll(async () => await at[Symbol.asyncDispose]());

async function list(token: string, query = ""): Promise<{ events: FleetEvent[]; next: string | null }> {
  const { status, json } = await at.ask("GET", `/v1/events${query}`, { token });
  expect(status).toBe(200);
  return json as { events: FleetEvent[]; next: string | null };
}

it("GET /v1/events lists the caller's own events, and with the scope admin those of all users", async () => {
  const alice = await at.token("alice");
  const admin = await at.token("root", ["admin"]);
  await at.fleet.tokens.issue("bob");
  const own = await list(alice);
  expect(own.events.map(({ type }) => type)).toEqual(["signon.accepted", "token.issued"]);
  expect(own.events[0]).toMatchObject({ user: "alice", actor: { user: "alice", via: "http" }, outcome: "ok" });
  expect((await list(alice, "?user=alice")).events).toHaveLength(2);
  expect((await at.ask("GET", "/v1/events?user=bob", { token: alice })).status).toBe(403);
  const all = await list(admin);
  expect(all.events.map(({ user }) => user)).toEqual(expect.arrayContaining(["alice", "bob", "root"]));
  expect((await list(admin, "?user=bob&type=token.issued")).events).toMatchObject([{ user: "bob" }]);
  const first = await list(admin, "?limit=2");
  const second = await list(admin, `?limit=2&cursor=${first.next}`);
  expect([...first.events, ...second.events]).toEqual(all.events.slice(0, 4));
});

it("GET /v1/events lists each host's events in reverse log order, even if its clock went back", async () => {
  const minutes: Readonly<Record<string, readonly number[]>> = { a: [10, 10, 10, 5], b: [7, 12, 12] };
  const events = Object.entries(minutes).flatMap(([host, times]) =>
    times.map((minute, index) => {
      const at = new Date(Date.UTC(2026, 0, 1, 0, minute)).toISOString();
      return { id: `${minute}-${(index * 7) % 4}`, seq: index + 1, at, host };
    }),
  );
  const seen: string[] = [];
  let cursor: string | null | undefined;
  while (cursor !== null) {
    const query = { limit: 2, ...(cursor === undefined ? {} : { cursor }) };
    const asked = { fleet: { events: { list: async () => events } }, identity: { scopes: ["admin"] }, query };
    const page = (await EVENT_ROUTES[0]?.handle(asked as never)) as { events: FleetEvent[]; next: string | null };
    seen.push(...page.events.map(({ host, seq }) => `${host}${seq}`));
    cursor = page.next;
  }
  expect(seen).toEqual(["b3", "b2", "a4", "a3", "a2", "a1", "b1"]);
});

it("the audit log records each request with a refused token, but only the first with an accepted token", async () => {
  const admin = await at.token("root", ["admin"]);
  const token = await at.token("carol");
  for (let request = 0; request < 3; request++) expect((await at.ask("GET", "/v1/me", { token })).status).toBe(200);
  expect((await at.ask("GET", "/v1/me", { token: `${token.slice(0, -1)}!` })).status).toBe(401);
  const { events } = await list(admin, "?user=carol&type=signon.accepted");
  expect(events).toHaveLength(1);
  const refused = await list(admin, "?type=signon.refused");
  expect(refused.events).toMatchObject([{ outcome: "refused", reason: "FLEET_TOKEN_REFUSED", user: null }]);
  expect(JSON.stringify(refused.events)).not.toContain(token.slice(-20, -1));
});

/** Opens the stream of events, calls `act`, and resolves with the id and the user of the first event that arrives. */
async function streamed(token: string, query: string, headers: Record<string, string>, act: () => Promise<unknown>) {
  const end = new AbortController();
  onTestFinished(() => end.abort());
  const response = await fetch(`${at.door.url}/v1/events${query}`, {
    headers: { Authorization: `Bearer ${token}`, Accept: "text/event-stream", ...headers },
    signal: AbortSignal.any([end.signal, AbortSignal.timeout(30_000)]),
  });
  const acting = act();
  let text = "";
  for await (const chunk of response.body ?? []) {
    text += Buffer.from(chunk).toString();
    const [, id = "", data = ""] = /id: (.*)\n(?:event: .*\n)?data: (.*)\n/.exec(text) ?? [];
    if (data !== "") {
      await acting;
      return { id, user: (JSON.parse(data) as FleetEvent).user };
    }
  }
  throw new Error("the stream ended");
}

it("an event stream continues after Last-Event-ID, even if the host's clock was set back", async () => {
  const admin = await at.token("root", ["admin"]);
  const issued = "?type=token.issued";
  const first = await streamed(admin, issued, {}, async () => await at.fleet.tokens.issue("dora"));
  expect(first.user).toBe("dora");
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() - 3_600_000 });
  try {
    await at.fleet.tokens.issue("erik");
  } finally {
    vi.useRealTimers();
  }
  const second = await streamed(admin, issued, { "Last-Event-ID": first.id }, async () => undefined);
  expect(second.user).toBe("erik");
});

it("an event stream sends the complete log if Last-Event-ID is past its end, because the log is new", async () => {
  const admin = await at.token("root", ["admin"]);
  const { id } = await streamed(admin, "", {}, async () => await at.fleet.tokens.issue("fred"));
  const beyond = `${id.replace(/\d+$/, "")}999999`;
  const { user } = await streamed(admin, "?type=token.issued", { "Last-Event-ID": beyond }, async () => undefined);
  expect(user).toBeTypeOf("string");
});

it("for a host that Last-Event-ID does not name, a stream begins a minute before that id's event", async () => {
  const admin = await at.token("root", ["admin"]);
  const query = "?type=token.issued&user=gina";
  const issue = async () => await at.fleet.tokens.issue("gina");
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() - 600_000 });
  try {
    await issue();
  } finally {
    vi.useRealTimers();
  }
  const [earlier = { id: "", at: "" }] = (await list(admin, query)).events;
  const next = async (afterMs: number) => {
    const time = (Date.parse(earlier.at) + afterMs).toString(36).padStart(9, "0");
    return await streamed(admin, query, { "Last-Event-ID": `${time}000000000000@elsewhere:5` }, issue);
  };
  expect((await next(59_000)).id).toContain(earlier.id);
  expect((await next(61_000)).id).not.toContain(earlier.id);
});
