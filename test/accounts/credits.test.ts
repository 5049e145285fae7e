import { describe, expect, it } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { FakeGitHub } from "../fixtures/models/fake-github.js";

const CONFIG = { provider: null, auth: { githubToken: { env: "GITHUB_TOKEN_OF_ALL" } }, session: { model: "gpt-5" } };
const REJECT = { onPermissionRequest: () => ({ kind: "reject" as const }) };

/** A fleet that uses GitHub's models. Each answer costs 20 AI credits. */
async function fleetWith(
  github: FakeGitHub,
  { session = {}, ...more }: { isolation?: "per-user" | "shared"; session?: object } = {},
): Promise<DoorFleet> {
  github.credits = 20;
  github.accept("gho_all");
  return await DoorFleet.open({
    env: { ...github.env, GITHUB_TOKEN_OF_ALL: "gho_all" },
    config: { ...CONFIG, session: { ...CONFIG.session, ...session }, ...more },
  });
}

async function newSession({ fleet }: DoorFleet): Promise<string> {
  const session = await fleet.sessions.create({ user: "ann" });
  await fleet.sessions.leave(session);
  return session.sessionId;
}

const usedUp = (used: number | "up its", max: number) => ({
  code: "FLEET_LIMIT_REACHED",
  limit: "session.maxCredits",
  message: expect.stringMatching(
    new RegExp(
      `has used ${used} AI credits, and gets no more \\(session.maxCredits${used === "up its" ? "" : ` is ${max}`}`,
    ),
  ) as string,
});

describe("a session with session.maxCredits", () => {
  it.each(["per-user", "shared"] as const)(
    "a session whose AI credits are used up is not opened again on a %s server, and its model is not asked",
    async (isolation) => {
      await using github = await FakeGitHub.start();
      await using at = await fleetWith(github, { isolation, session: { maxCredits: 30 } });
      const { fleet } = at;
      const id = await newSession(at);
      for (const prompt of ["one", "two"]) await fleet.sessions.use(id, prompt, { user: "ann" });
      await expect(fleet.sessions.use(id, "three", { user: "ann" })).rejects.toMatchObject(usedUp(40, 30));
      expect(github.asked).toHaveLength(2);
      const { usage } = await fleet.usage.report({ by: "session" });
      expect(usage).toMatchObject([{ key: id, turns: 2, requests: 2, credits: 40 }]);
    },
  );

  it("an open session whose AI credits are used up refuses each prompt, and counts no turn", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { session: { maxCredits: 30 } });
    const session = await at.fleet.sessions.create({ user: "ann" });
    for (const prompt of ["one", "two"]) await at.fleet.sessions.send(session, prompt);
    for (const prompt of ["three", "four"])
      await expect(at.fleet.sessions.send(session, prompt)).rejects.toMatchObject(usedUp(40, 30));
    expect(github.asked).toHaveLength(2);
    expect((await at.fleet.usage.report()).total).toMatchObject({ turns: 2, credits: 40 });
    await at.fleet.sessions.leave(session);
  });

  it("a turn that reaches session.maxCredits between two model requests fails with an error about the limit", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { session: { maxCredits: 30, approve: "all" } });
    github.credits = 31;
    const tool = { name: "note", description: "Notes.", parameters: { type: "object" }, handler: () => "noted" };
    const session = await at.fleet.sessions.create({ user: "ann", tools: [tool] as never });
    await expect(at.fleet.sessions.send(session, "!tool note")).rejects.toMatchObject(usedUp("up its", 30));
    expect(github.asked).toHaveLength(1);
    expect((await at.fleet.usage.report()).total).toMatchObject({ turns: 1, requests: 1, credits: 31 });
    await at.fleet.sessions.leave(session);
  });

  it("the error of a turn that failed at session.maxCredits names the limit, even if no event reports it", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { session: { maxCredits: 30 } });
    const session = await at.fleet.sessions.create({ user: "ann" });
    const send = async () => await at.fleet.sessions.send(session, "!nothing");
    await expect(send()).rejects.toMatchObject({
      code: "FLEET_TURN_FAILED",
      message: expect.stringMatching(/No response/),
    });
    await expect(send()).rejects.toMatchObject(usedUp("up its", 30));
    await at.fleet.sessions.leave(session);
  });

  it("a session whose AI credits are used up continues when session.maxCredits is raised", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { session: { maxCredits: 30 } });
    const id = await newSession(at);
    for (const prompt of ["one", "two"]) await at.fleet.sessions.use(id, prompt, { user: "ann" });
    const config = { ...CONFIG, session: { ...CONFIG.session, maxCredits: 100 } };
    await using raised = await Fleet.open({ env: at.env, cwd: at.folder, config });
    const { text } = await raised.sessions.use(id, "three", { user: "ann" });
    expect(text).toContain("by gho_all");
  });
});

describe("at the front door, the credit limit of session.maxCredits", () => {
  it("at the front door, session.maxCredits applies to each session, and a client can only lower it", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { session: { maxCredits: 50 } });
    const client = await at.client("ann");
    const limitsOf = async (limits?: { maxAiCredits: number }) => {
      const session = await client.createSession({
        ...REJECT,
        ...(limits === undefined ? {} : { sessionLimits: limits }),
      });
      return { session, limits: (await session.rpc.metadata.snapshot()).sessionLimits };
    };
    expect((await limitsOf()).limits).toEqual({ maxAiCredits: 50 });
    expect((await limitsOf({ maxAiCredits: 80 })).limits).toEqual({ maxAiCredits: 50 });
    const { session, limits } = await limitsOf({ maxAiCredits: 30 });
    expect(limits).toEqual({ maxAiCredits: 30 });
    const denied = /a session may use 50 AI credits \(session\.maxCredits\), and a client can only lower that/;
    for (const sessionLimits of [null, {}, { maxAiCredits: 51 }])
      await expect(session.rpc.options.update({ sessionLimits })).rejects.toThrow(denied);
    await session.rpc.options.update({ sessionLimits: { maxAiCredits: 40 } });
    for (const response of [
      { action: "unset" },
      { action: "add", additionalAiCredits: 1 },
      { action: "set", maxAiCredits: 51 },
    ])
      await expect(
        session.rpc.ui.handlePendingSessionLimitsExhausted({ requestId: "r", response: response as never }),
      ).rejects.toThrow(denied);
    expect((await session.rpc.metadata.snapshot()).sessionLimits).toEqual({ maxAiCredits: 40 });
  });

  it("when a session's credits are used up, the front door refuses its prompts, and clients that resume it", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { session: { maxCredits: 30 } });
    const client = await at.client("ann");
    const session = await client.createSession(REJECT);
    for (const prompt of ["one", "two"]) await session.sendAndWait({ prompt });
    const used = /has used 40 AI credits, and gets no more \(session\.maxCredits is 30\)/;
    for (const prompt of ["three", "four"]) await expect(session.sendAndWait({ prompt })).rejects.toThrow(used);
    expect(github.asked).toHaveLength(2);
    expect((await session.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(2);
    await session.disconnect();
    await expect((await at.client("ann")).resumeSession(session.sessionId, REJECT)).rejects.toThrow(used);
  });
});

describe("at the front door, a session with session.maxCredits", () => {
  it("with session.maxCredits, the front door denies methods that would make the credit count too low", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { session: { maxCredits: 30 } });
    const client = await RawClient.as(at.url, await at.token("ann"));
    await client.requestOk("session.create", { sessionId: "s" });
    for (const prompt of ["one", "two"]) await client.turn("s", prompt);
    const uncounted =
      "a session may use 30 AI credits (session.maxCredits), and this method would make the count too low";
    for (const [method, params] of [
      ["session.history.truncate", { eventId: "e" }],
      ["session.history.rewind", { eventId: "e", mode: "conversation" }],
      ["session.history.clearContext", { prompt: "x" }],
      ["session.history.summarizeForHandoff", {}],
      ["session.ui.ephemeralQuery", { prompt: "x" }],
    ] as const) {
      const { error } = await client.request(method, { sessionId: "s", ...params });
      expect(error).toMatchObject({
        message: expect.stringContaining(uncounted),
        data: { code: "FLEET_METHOD_DENIED" },
      });
    }
    const { error } = await client.request("session.history.compact", { sessionId: "s" });
    expect(error).toMatchObject({ data: { code: "FLEET_LIMIT_REACHED", limit: "session.maxCredits" } });
    expect(github.asked).toHaveLength(2);
  });

  it("a session that a member opens gets session.maxCredits, and only its owner can set a lower limit", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { isolation: "shared", session: { maxCredits: 50 } });
    const config = { ...CONFIG, isolation: "shared" as const };
    await using unlimited = await Fleet.open({ env: at.env, cwd: at.folder, config });
    const made = await unlimited.sessions.create({ user: "ann", members: ["ben"] });
    const id = made.sessionId;
    await unlimited.sessions.send(made, "one");
    await unlimited.sessions.leave(made);
    const wishes = { ...REJECT, sessionLimits: { maxAiCredits: 40 } };
    const ben = await at.client("ben");
    const joined = await ben.resumeSession(id, wishes);
    expect((await joined.rpc.metadata.snapshot()).sessionLimits).toEqual({ maxAiCredits: 50 });
    const raise = { requestId: "r", response: { action: "set" as const, maxAiCredits: 40 } };
    await expect(joined.rpc.ui.handlePendingSessionLimitsExhausted(raise)).rejects.toThrow(
      "only the owner of a session sets its limits",
    );
    const ann = await at.client("ann");
    const owner = await ann.resumeSession(id, { ...REJECT, sessionLimits: { maxAiCredits: 30 } });
    const limits = async () => (await owner.rpc.metadata.snapshot()).sessionLimits;
    await ben.resumeSession(id, wishes);
    expect(await limits()).toEqual({ maxAiCredits: 30 });
    const ofLibrary = await at.fleet.sessions.resume(id, { user: "ben", sessionLimits: { maxAiCredits: 40 } });
    expect(await limits()).toEqual({ maxAiCredits: 30 });
    await at.fleet.sessions.leave(ofLibrary);
  });
});

describe("a prompt of the library in a session with session.maxCredits", () => {
  it("with session.maxCredits, a library prompt fails at its timeout if the server does not answer", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { session: { maxCredits: 50 } });
    const session = await at.fleet.sessions.create({ user: "ann" });
    const { pid } = await at.serverOf("ann");
    process.kill(pid, "SIGSTOP");
    try {
      const sent = at.fleet.sessions.send(session, "one", { timeout: 2_000 });
      await expect(sent).rejects.toMatchObject({ code: "FLEET_SERVER_UNREACHABLE" });
    } finally {
      process.kill(pid, "SIGCONT");
    }
    await at.fleet.sessions.leave(session);
  });
});

describe("describe USER", () => {
  it.each(["per-user", "shared"] as const)("describe shows a user's quota on a %s server", async (isolation) => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github, { isolation });
    const { fleet } = at;
    await fleet.sessions.use(await newSession(at), "one", { user: "ann" });
    const quota = [{ kind: "premium_interactions", used: 100, included: 300, overage: 0, resetsAt: null }];
    expect(await fleet.descriptions.get("user/ann")).toMatchObject({ quota });
    await fleet.servers.stop([(await fleet.servers.list())[0]?.id ?? ""]);
    expect(await fleet.descriptions.get("user/ann")).toMatchObject({ quota: null });
    expect(fleet.takeWarnings()).toEqual([]);
  });

  it("if GitHub refuses the token, describe warns that the user's quota is unknown, and shows all other data", async () => {
    await using github = await FakeGitHub.start();
    await using at = await fleetWith(github);
    github.revokeAll();
    await at.fleet.servers.spawn("ann");
    expect(await at.fleet.descriptions.get("user/ann")).toMatchObject({ quota: null, servers: [{ user: "ann" }] });
    expect(at.fleet.takeWarnings()).toEqual([expect.stringContaining('The Copilot quota of "ann" is not known: ')]);
  });
});
