import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { UsageBy } from "../../src/base/usage.js";
import { tokenIdIn } from "../../src/identity/tokens.js";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";

/** The usage of one user, grouped by `by`. */
async function usageOf(at: DoorFleet, user: string, by: UsageBy = "user") {
  const parts = await at.store.usage.read({ from: 0, to: Date.now() + 60_000, by, user });
  return parts.map(({ key, model, turns, requests, inputTokens, outputTokens }) => ({
    key,
    model,
    turns,
    requests,
    inputTokens,
    outputTokens,
  }));
}

// The scripted model reports one input token and one output token for each request.
describe.each([
  ["with a model gateway", {}],
  ["without a model gateway, by the events of the runtime", { hasKey: false }],
])("the usage of a turn, %s", (_, options) => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open(options);
  });
  afterAll(async () => await at[Symbol.asyncDispose]());

  it("a turn through the front door counts once, for the user and the token of the client", async () => {
    const user = unused("door");
    const token = await at.token(user);
    const client = await RawClient.as(at.url, token);
    await client.requestOk("session.create", { sessionId: user });
    await client.turnOk(user, "first");
    await client.turnOk(user, "second");
    await eventually("the end of the turns", () => at.door.turns === 0);
    const both = { model: "gpt-5", turns: 2, requests: 2, inputTokens: 2, outputTokens: 2 };
    expect(await usageOf(at, user, "token")).toEqual([{ key: tokenIdIn(token), ...both }]);
    expect(await usageOf(at, user, "session")).toEqual([{ key: user, ...both }]);
  });

  it("a turn of the library counts once, even if the agent asks the model several times", async () => {
    const user = unused("library");
    const id = unused("tool");
    const session = await at.fleet.sessions.create({ user, sessionId: id });
    await at.fleet.sessions.send(session, "first");
    await at.fleet.sessions.leave(session);
    await at.fleet.sessions.use(id, '!tool bash {"command":"true","description":"d"}', { user });
    const all = { model: "gpt-5", turns: 2, requests: 3, inputTokens: 3, outputTokens: 3 };
    expect(await usageOf(at, user, "token")).toEqual([{ key: null, ...all }]);
  });

  it("a member's turn counts for the member, and a refused prompt counts for nobody", async () => {
    const [owner, member] = [unused("owner"), unused("member")];
    const session = await at.fleet.sessions.create({ user: owner, members: [member] });
    await at.fleet.sessions.leave(session);
    await at.fleet.sessions.use(session.sessionId, "hello", { user: member });
    await expect(at.fleet.sessions.use(session.sessionId, "hello", { user: "nobody" })).rejects.toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
    const lease = await at.fleet.leases.acquire(session.sessionId, { user: owner });
    const refused = at.fleet.sessions.use(session.sessionId, "hello", { user: member, wait: "0s" });
    await expect(refused).rejects.toMatchObject({ code: "FLEET_SESSION_LOCKED" });
    await at.fleet.leases.release(session.sessionId, lease);
    expect(await usageOf(at, member)).toMatchObject([{ turns: 1, requests: 1, inputTokens: 1 }]);
    expect([...(await usageOf(at, owner)), ...(await usageOf(at, "nobody"))]).toEqual([]);
  });
});

it("a turn that was aborted during the model's answer counts, with an estimate of its tokens", async () => {
  await using at = await DoorFleet.open();
  const stop = new AbortController();
  const session = await at.fleet.sessions.create({ user: "ann" });
  const turn = at.fleet.sessions.send(session, "!hold gate", { signal: stop.signal });
  await eventually("the request", () => at.model.shown("!hold gate") > 0);
  stop.abort(new Error("enough"));
  await expect(turn).rejects.toThrow("enough");
  await at.fleet.sessions.leave(session);
  const inputTokens = Math.ceil(at.model.largestBytes() / 4);
  expect(await usageOf(at, "ann")).toEqual([
    { key: "ann", model: "gpt-5", turns: 1, requests: 1, inputTokens, outputTokens: 0 },
  ]);
});
