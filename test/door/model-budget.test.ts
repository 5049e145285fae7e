import { expect, it } from "vitest";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

/** Asks the model with the token of a session, as an agent can that reads the memory of its own server. */
async function ask(at: DoorFleet, sessionId: string): Promise<number> {
  const provider = await at.provider.of(sessionId, {});
  const body = JSON.stringify({ model: "m", stream: true, messages: [{ role: "user", content: "direct" }] });
  const headers = { authorization: `Bearer ${provider?.apiKey}` };
  const answer = await fetch(`${provider?.baseUrl}/chat/completions`, { method: "POST", headers, body });
  await answer.text();
  return answer.status;
}

it("with the token of its session, an agent reaches the model only during a turn, and that counts", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"));
  await client.requestOk("session.create", { sessionId: "s" });
  expect(await ask(at, "s")).toBe(422);
  const turn = client.turnOk("s", "!hold one");
  await expect.poll(() => at.model.shown("!hold one")).toBe(1);
  const used = async () => (await at.fleet.limits.get("alice")).used.tokensPerDay ?? 0;
  const before = await used();
  expect(await ask(at, "s")).toBe(200);
  expect(await used()).toBe(before + 2);
  at.model.letGo("one");
  await turn;
  await expect.poll(async () => await ask(at, "s")).toBe(422);
});

it("an agent that hangs up before the usage of each answer cannot exceed the bound of its budget", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"));
  await client.requestOk("session.create", { sessionId: "s" });
  await at.fleet.limits.set("alice", { tokensPerDay: 1_000_000 });
  const turn = client.turnOk("s", "!hold three");
  await expect.poll(() => at.model.shown("!hold three")).toBe(1);
  const provider = await at.provider.of("s", {});
  // Each request has 2.4 MB, so it counts as some more than 600,000 tokens. The bound is 2,000,000.
  const messages = [
    { role: "system", content: "x".repeat(2_400_000) },
    { role: "user", content: "!pause never" },
  ];
  const body = JSON.stringify({ model: "m", stream: true, messages });
  const used = async () => (await at.fleet.limits.get("alice")).used.tokensPerDay ?? 0;
  const statuses: number[] = [];
  for (let count = 0; count < 6; count++) {
    const before = await used();
    const stop = new AbortController();
    const headers = { authorization: `Bearer ${provider?.apiKey}` };
    const init = { method: "POST", headers, body, signal: stop.signal };
    const { status } = await fetch(`${provider?.baseUrl}/chat/completions`, init);
    stop.abort();
    statuses.push(status);
    if (status === 200) await expect.poll(used).toBeGreaterThan(before + 600_000);
  }
  expect(statuses).toEqual([200, 200, 200, 200, 429, 429]);
  at.model.letGo("never");
  at.model.letGo("three");
  await turn;
});

it.each([
  // Each request counts as some more than 600,000 tokens. The bound is 2,000,000.
  { count: 6, bytes: 2_400_000, passed: [4, 4] },
  // Each request counts as 10,000 tokens for its answer, and as a few more.
  { count: 250, bytes: 1, passed: [150, 200] },
])(
  "an agent cannot exceed the bound of its budget by sending $count requests of $bytes bytes at once",
  async ({ count, bytes, passed: [least = 0, most] }) => {
    await using at = await DoorFleet.open();
    const client = await RawClient.as(at.url, await at.token("alice"));
    await client.requestOk("session.create", { sessionId: "s" });
    await at.fleet.limits.set("alice", { tokensPerDay: 1_000_000 });
    const turn = client.turnOk("s", "!hold four");
    await expect.poll(() => at.model.shown("!hold four")).toBe(1);
    const provider = await at.provider.of("s", {});
    const messages = [
      { role: "system", content: "x".repeat(bytes) },
      { role: "user", content: "!pause never" },
    ];
    const body = JSON.stringify({ model: "m", stream: true, messages });
    const init = { method: "POST", headers: { authorization: `Bearer ${provider?.apiKey}` }, body };
    const asked = Array.from({ length: count }, async () => await fetch(`${provider?.baseUrl}/chat/completions`, init));
    const answers = await Promise.all(asked);
    const passed = answers.filter(({ status }) => status === 200);
    expect(answers.filter(({ status }) => status === 429)).toHaveLength(count - passed.length);
    expect(passed.length).toBeGreaterThanOrEqual(least);
    expect(passed.length).toBeLessThanOrEqual(Number(most));
    at.model.letGo("never");
    await Promise.all(answers.map(async (answer) => await answer.text()));
    // Now all of these requests have ended. Together they used few tokens.
    expect(await ask(at, "s")).toBe(200);
    at.model.letGo("four");
    await turn;
  },
);

it("outside of turns, an agent cannot exceed the budget, and a running turn that began within it is not cut", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("alice"));
  await client.requestOk("session.create", { sessionId: "s" });
  await at.fleet.limits.set("alice", { tokensPerDay: 5 });
  // A client may ask for such work outside of turns, so that the gateway expects requests.
  await client.request("session.history.compact", { sessionId: "s" });
  const statuses: number[] = [];
  for (let count = 0; count < 6; count++) statuses.push(await ask(at, "s"));
  expect(statuses.indexOf(429)).toBeGreaterThan(0);
  expect(statuses.slice(statuses.indexOf(429))).not.toContain(200);
  await at.fleet.limits.set("alice", { tokensPerDay: 1_000 });
  const turn = client.turnOk("s", "!hold two");
  await expect.poll(() => at.model.shown("!hold two")).toBe(1);
  await at.fleet.limits.set("alice", { tokensPerDay: 1 });
  expect(await ask(at, "s")).toBe(200);
  at.model.letGo("two");
  await turn;
});
