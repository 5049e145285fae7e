import { rmSync } from "node:fs";
import { join } from "node:path";
import { approveAll, CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Lease } from "../../src/base/session.js";
import { Fleet } from "../../src/index.js";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";

const command = testFleet({ COPILOTFLEET_SERVE_TURN_WAIT: "500ms" });

interface Locked {
  lease: Lease & { token: string };
}

async function lock(session: string, ...args: string[]): Promise<Locked["lease"]> {
  return (await command.json<Locked>(["lock", session, "--user", "alice", ...args])).lease;
}

async function unlock({ sessionId, token }: Locked["lease"]): Promise<void> {
  await command.ok(["unlock", sessionId, "--token", token]);
}

beforeAll(async () => {
  await command.create("alice", "notes");
  await command.ok(["create", "--user", "alice", "--id", "team", "--collaborative", "--member", "bob"]);
});

/** A test that fails must not lock out the tests after it. */
afterEach(() => rmSync(join(command.root, "leases"), { recursive: true, force: true }));

describe("a user's own lock on a session", () => {
  it.each(["notes", "team"])(
    "send to the session %s fails at once while the sender has locked that session, and suggests what to do",
    async (id) => {
      const lease = await lock(id);
      for (const args of [
        ["send", id, "x", "--user", "alice"],
        ["resume", id, "--user", "alice", "--prompt", "x"],
      ]) {
        const error = await command.refusal(5, args);
        expect(error).toMatchObject({
          code: "FLEET_SESSION_LOCKED",
          message: expect.stringMatching(
            new RegExp(`^Session "${id}" is locked by "alice" for another (2\\d\\d|300) s\\. `),
          ),
          suggestions: [
            `copilotfleet unlock ${id} --token TOKEN`,
            `export COPILOTFLEET_LEASE_SESSION=${id} COPILOTFLEET_LEASE_TOKEN=TOKEN`,
            "Wait with --wait 5m until another process releases it.",
          ],
        });
        expect(error.message).not.toContain("waited");
      }
      const env = { COPILOTFLEET_LEASE_SESSION: id, COPILOTFLEET_LEASE_TOKEN: lease.token };
      expect(await command.ok(["send", id, "under it", "--user", "alice"], { env })).toMatch(/under it\n$/);
      await unlock(lease);
      expect(await command.send("alice", id, "after it")).toMatch(/after it$/);
    },
  );

  it("send waits for the user's own lock if --wait is given, or if the lock ends within the default wait", async () => {
    const lease = await lock("notes");
    const waiting = command.start(["send", "notes", "waited", "--user", "alice", "--wait", "1m"]);
    await queued("notes");
    await unlock(lease);
    expect(await waiting.done).toMatchObject({ code: 0, stderr: "", stdout: expect.stringMatching(/waited\n$/) });
    await lock("notes", "--ttl", "2s");
    expect(await command.send("alice", "notes", "soon")).toMatch(/soon$/);
  });
});

describe("a wait for a session", () => {
  it.each([
    [
      "send",
      ["send", "team", "x", "--user", "bob"],
      'Interrupted: the turn was cancelled, if it had begun. The session "team" still exists.',
    ],
    ["lock", ["lock", "team", "--user", "bob"], ""],
  ])("%s on a terminal shows who locked the session and how long, and Ctrl-C ends the wait", async (_, args, left) => {
    const lease = await lock("team");
    await using terminal = new Terminal(command, args);
    await terminal.line(/^\S Waiting for "team": alice locked it for (2\d\d|300) s more\. Ctrl-C stops waiting\.$/);
    terminal.type("\x03");
    expect(await terminal.done).toBe(130);
    expect(terminal.screen).toMatchObject({ column: 0, isCursorVisible: true });
    expect(terminal.screen.lines.join("")).toBe(left);
    await unlock(lease);
  });

  it("send prints no waiting notice to a pipe or with --json, and its error states how long it waited", async () => {
    const lease = await lock("team");
    for (const json of [[], ["--json"]]) {
      const ran = await command.run(["send", "team", "x", "--user", "bob", "--wait", "1500ms", ...json]);
      expect(ran.code).toBe(5);
      expect(ran.stdout + ran.stderr).not.toContain("Waiting");
      expect(ran.stdout + ran.stderr).toContain("waited 1.5 s");
      expect(ran.stdout + ran.stderr).toContain("lock team --user bob --steal");
    }
    await unlock(lease);
  });
});

describe("leases.hold", () => {
  let fleet: Fleet;
  beforeEach(async () => {
    fleet = await Fleet.open({ env: command.env, cwd: command.folder });
  });
  afterEach(async () => {
    await fleet.close();
  });

  const alice = { user: "alice" };
  const ALICE_AT_ONCE = { user: "alice", wait: 0 };
  const LOCKED = { code: "FLEET_SESSION_LOCKED" };

  it.each(["notes", "team"])("turns of leases.hold's callback in session %s run under its lease", async (id) => {
    const session = await fleet.sessions.resume(id, alice);
    await fleet.leases.hold(id, alice, async ({ fence }) => {
      expect((await fleet.sessions.use(id, "one", ALICE_AT_ONCE)).text).toMatch(/one$/);
      expect((await fleet.sessions.send(session, "two", { wait: 0 })).text).toMatch(/two$/);
      expect((await session.sendAndWait({ prompt: "three" }))?.data.content).toMatch(/three$/);
      expect(await fleet.leases.get(id)).toMatchObject({ fence, holder: "alice" });
    });
    expect(await fleet.leases.get(id)).toBeNull();
  });

  it("leases.hold runs turns one after another, even if its callback starts them at the same time", async () => {
    const prompts = ["a", "b", "c", "d"];
    const replies = await fleet.leases.hold("notes", alice, async () => {
      return await Promise.all(prompts.map(async (prompt) => await fleet.sessions.use("notes", prompt, alice)));
    });
    expect(replies.map(({ text }) => text.replace(/^\[turn \d+\] /, ""))).toEqual(prompts);
    const turns = replies.map(({ text }) => Number(/\d+/.exec(text)?.[0]));
    expect(turns).toEqual(turns.map((_, index) => (turns[0] ?? 0) + index));
  });

  it("leases.hold does not let other users, outside callers or later turns use its lease", async () => {
    const [entered, enter] = gate();
    const [checked, check] = gate();
    const [released, release] = gate();
    let left: Promise<unknown> | undefined;
    const inside = fleet.leases.hold("team", alice, async () => {
      enter();
      await expect(fleet.sessions.use("team", "x", { user: "bob", wait: 0 })).rejects.toMatchObject(LOCKED);
      left = released.then(async () => await fleet.sessions.use("team", "x", ALICE_AT_ONCE));
      // A client at the front door may not use the lease either, even though it signs in as the same user.
      await using door = await fleet.doors.open({ listen: { host: "127.0.0.1", port: 0 } });
      const { token } = await fleet.tokens.issue("alice");
      const client = new CopilotClient({
        connection: RuntimeConnection.forUri(`127.0.0.1:${door.address.port}`, { connectionToken: token }),
      });
      const session = await client.resumeSession("team", { onPermissionRequest: approveAll });
      await expect(session.sendAndWait({ prompt: "x" })).rejects.toThrow(/locked by "alice"/);
      await client.stop();
      await checked;
    });
    await entered;
    await expect(fleet.sessions.use("team", "x", ALICE_AT_ONCE)).rejects.toMatchObject(LOCKED);
    check();
    await inside;
    const next = await fleet.leases.acquire("team", { user: "bob" });
    release();
    await expect(left).rejects.toMatchObject(LOCKED);
    await next.release();
  });

  it("nested calls of leases.hold have one lease for each session, and share it if they lock the same session", async () => {
    await fleet.leases.hold("notes", alice, async (outer) => {
      await fleet.leases.hold("team", alice, async () => {
        for (const id of ["notes", "team"]) {
          expect((await fleet.sessions.use(id, "nested", ALICE_AT_ONCE)).text).toMatch(/nested$/);
        }
      });
      const other = await fleet.leases.acquire("team", { user: "bob", wait: "0" });
      await other.release();
      await fleet.leases.hold("notes", { user: "alice", wait: "0" }, async (inner) => {
        expect(inner.fence).toBe(outer.fence);
      });
      await outer.check();
    });
  });

  it("a lease that is passed to a turn takes precedence over that of the surrounding leases.hold", async () => {
    const lost = await fleet.leases.acquire("notes", alice);
    await fleet.leases.hold("notes", { user: "alice", steal: { reason: "test" } }, async () => {
      const exchange = fleet.sessions.use("notes", "x", { user: "alice", lease: lost });
      await expect(exchange).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
    });
  });
});

/** Resolves when somebody waits for the lease on a session. */
async function queued(session: string): Promise<void> {
  const probe = { sessionId: session, holder: "p", token: "p", ttlMs: 1, placeMs: 1 };
  const ask = () => openStore("file", command.root).leases.acquire(probe);
  await expect.poll(ask, { timeout: 20_000 }).toMatchObject({ granted: false, ahead: 1 });
}

/** A promise, and the function that resolves it. */
function gate(): [Promise<void>, () => void] {
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return [opened, () => open()];
}
