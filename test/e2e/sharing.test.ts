import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, it, vi } from "vitest";
import type { ServerView } from "../../src/servers/server.js";
import type { SessionView } from "../../src/sessions/view.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { COMMAND } from "../fixtures/commands/command.js";
import { startHeldModel } from "../fixtures/models/held-model.js";

const SHARED = { COPILOTFLEET_ISOLATION: "shared", COPILOTFLEET_POOL_SERVERS: "2" };
/** Polls until `condition` holds, for 20 s at most. */
const until = async (condition: () => Promise<boolean>) => {
  await vi.waitFor(async () => expect(await condition()).toBe(true), { timeout: 20_000, interval: 20 });
};

const fleet = testFleet();

interface Created {
  session: SessionView;
  reply: string | null;
}

const servers = async () => (await fleet.json<{ servers: ServerView[] }>(["ps"])).servers;

describe("shared isolation", () => {
  it("shared isolation keeps each of five users on one of two servers, and keeps their sessions apart", async () => {
    const users = ["ann", "ben", "cid", "dan", "eve"];
    for (const user of users) {
      const args = ["create", "--user", user, "--id", `${user}-notes`, "--prompt", "hello"];
      const { session, reply } = await fleet.json<Created>(args, { env: SHARED });
      expect(reply).toBe("[turn 1] hello");
      expect(session).toMatchObject({ owner: user, serverId: expect.stringMatching(/^shared-[12]$/) });
      const again = await fleet.json<Created>(["create", "--user", user], { env: SHARED });
      expect(again.session.serverId).toBe(session.serverId);
    }
    const running = await servers();
    expect(running.length).toBeLessThanOrEqual(2);
    for (const server of running) expect(server).toMatchObject({ isolation: "shared", user: null, state: "ready" });

    expect(await fleet.ok(["send", "ann-notes", "more", "--user", "ann"], { env: SHARED })).toBe("[turn 2] more\n");
    const foreign = await fleet.refusal(4, ["send", "ann-notes", "mine?", "--user", "ben"], { env: SHARED });
    const unknown = await fleet.refusal(4, ["send", "zzz-notes", "mine?", "--user", "ben"], { env: SHARED });
    expect(foreign.message.replace("ann-notes", "X")).toBe(unknown.message.replace("zzz-notes", "X"));
    const taken = await fleet.refusal(5, ["create", "--user", "ben", "--id", "ann-notes"], { env: SHARED });
    expect(taken.code).toBe("FLEET_SESSION_EXISTS");
  });

  it("a session on a shared server continues after a crash of the server", async () => {
    await fleet.ok(["create", "--user", "fay", "--id", "fay-1", "--prompt", "one"], { env: SHARED });
    for (const { pid } of await servers()) if (pid !== null) process.kill(pid, "SIGKILL");
    expect(await fleet.ok(["send", "fay-1", "two", "--user", "fay"], { env: SHARED })).toBe("[turn 2] two\n");
  });
});

describe("a private session", () => {
  it("a private session answers each of four prompts that arrive at once from four processes", async () => {
    await fleet.ok(["create", "--user", "ivy", "--id", "own"]);
    const prompts = ["!delay 300 a", "b", "!delay 50 c", "d"];
    const replies = await Promise.all(
      prompts.map((prompt) => fleet.ok(["send", "own", prompt, "--user", "ivy"], { ownProcess: true })),
    );
    expect(replies.map((reply) => reply.trim().slice(-1))).toEqual(["a", "b", "c", "d"]);
    expect(replies.map((reply) => reply.slice(0, 8)).toSorted()).toEqual([
      "[turn 1]",
      "[turn 2]",
      "[turn 3]",
      "[turn 4]",
    ]);
  });
});

describe("GitHub tokens on a shared server", () => {
  it("each session on a shared server uses the GitHub token of its own user", async () => {
    const seen = new Set<string>();
    const github = createServer((request, response) => {
      seen.add(request.headers.authorization ?? "");
      const api = `http://${request.headers.host}`;
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify({ login: "x", id: 1, copilot_plan: "individual", endpoints: { api } }));
    });
    await new Promise<void>((resolve) => github.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${(github.address() as AddressInfo).port}`;
    const env = {
      ...SHARED,
      COPILOTFLEET_HOME: `${fleet.root}-tokens`,
      COPILOTFLEET_PROVIDER_TYPE: undefined,
      COPILOTFLEET_AUTH_GITHUB_TOKEN: JSON.stringify({ command: "echo canary_of_{user}" }),
      COPILOT_API_URL: url,
      COPILOT_DEBUG_GITHUB_API_URL: url,
      COPILOT_OFFLINE: undefined,
    };
    try {
      for (const user of ["ann", "ben"]) await fleet.ok(["create", "--user", user], { env });
      expect(seen).toEqual(new Set(["Bearer canary_of_ann", "Bearer canary_of_ben"]));
    } finally {
      await fleet.ok(["stop", "--all", "--force"], { env });
      github.close();
    }
  });
});

describe("collaborative sessions", () => {
  it("the members of a collaborative session can run turns, other users cannot, and only the owner can delete it", async () => {
    const args = [
      "create",
      "--user",
      "alice",
      "--id",
      "team",
      "--collaborative",
      "--member",
      "bob",
      "--member",
      "carol",
    ];
    const { session } = await fleet.json<Created>(args);
    expect(session).toMatchObject({ kind: "collaborative", owner: "alice", members: ["bob", "carol"], lease: null });
    const members = ["alice", "bob", "carol"];
    const replies = await Promise.all(
      members.map((user) => fleet.ok(["send", "team", `I am ${user}`, "--user", user], { ownProcess: true })),
    );
    for (const [index, user] of members.entries())
      expect(replies[index]).toMatch(new RegExp(`^\\[turn \\d\\] I am ${user}\n$`));
    expect(replies.map((reply) => reply.slice(0, 8)).toSorted()).toEqual(["[turn 1]", "[turn 2]", "[turn 3]"]);
    expect((await fleet.refusal(4, ["send", "team", "hi", "--user", "mallory"])).code).toBe("FLEET_SESSION_NOT_FOUND");
    const bobs = await fleet.json<{ sessions: SessionView[] }>(["list", "--user", "bob"]);
    expect(bobs.sessions.map(({ id }) => id)).toEqual(["team"]);
    // A member may use the session. Only the owner may delete the session.
    expect((await fleet.refusal(4, ["delete", "team", "--user", "bob"])).code).toBe("FLEET_SESSION_NOT_FOUND");
    expect((await fleet.json<{ sessions: SessionView[] }>(["list", "--user", "alice"])).sessions).toHaveLength(1);
  });

  it("a send under the lease of a collaborative session runs while other members wait", async () => {
    await fleet.ok(["create", "--user", "alice", "--id", "pair", "--collaborative", "--member", "bob"]);
    const command = [process.execPath, COMMAND, "send", "pair", "!hold mine", "--user", "alice"];
    await using model = await startHeldModel();
    const holder = fleet.start(["lock", "pair", "--user", "alice", "--", ...command], { env: model.env });
    await until(async () => model.held() === 1);
    const refused = await fleet.refusal(5, ["send", "pair", "now!", "--user", "bob", "--wait", "50ms"]);
    expect(refused).toMatchObject({ code: "FLEET_SESSION_LOCKED", message: expect.stringContaining("alice") });
    const waiting = fleet.ok(["send", "pair", "after you", "--user", "bob"]);
    // By the time this command ends, bob's send is already waiting.
    expect(await fleet.json(["lock", "pair", "--show"])).toMatchObject({ lease: { holder: "alice" } });
    model.release();
    expect(await waiting).toBe("[turn 2] after you\n");
    expect((await holder.done).stdout).toBe("[turn 1] mine\n");
  });

  it.each([
    [["--member", "bob"], "--member needs --collaborative"],
    [["--collaborative", "--member", "alice"], '"alice" is the owner'],
    [["--collaborative", "--member", "../x"], '--member "../x"'],
  ])("create refuses the options %j for a collaborative session", async (extra, message) => {
    const error = await fleet.refusal(2, ["create", "--user", "alice", ...extra]);
    expect(error.message).toContain(message);
  });
});
