import { once } from "node:events";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { openStore } from "../../src/store/store.js";
import { RAW, TIME, testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

const fleet = testFleet();

const LEASE = {
  sessionId: "s",
  holder: "alice",
  fence: expect.any(Number),
  acquiredAt: TIME,
  expiresAt: TIME,
  remainingMs: expect.any(Number),
  ttlMs: 300_000,
  stealReason: null,
};
/** A lease that no process renews. */
const DETACHED = { ...LEASE, detached: true };
const TOKEN = expect.stringMatching(/^[0-9a-f]{64}$/);

const WAYS_TO_END = [
  "Release the lease: copilotfleet unlock s --token TOKEN (the token that lock printed)",
  "If the token is lost: copilotfleet lock s --user USER --steal --reason lost -- true",
];

interface Locked {
  lease: { token: string; fence: number; acquiredAt: string; expiresAt: string } | null;
  exitCode?: number;
}

/** Records sessions without starting a server, because a lease needs only the record of its session. */
beforeAll(async () => {
  const store = openStore("file", fleet.root);
  await store.sessions.create(sessionRecord("s", { kind: "collaborative", members: ["bob"] }));
  await store.sessions.create(sessionRecord("foreign", { owner: "eve" }));
});

/** A test that fails must not lock out the tests after it. */
afterEach(() => rmSync(join(fleet.root, "leases"), { recursive: true, force: true }));

function lock(...args: string[]): Promise<Locked> {
  return fleet.json<Locked>(["lock", "s", "--user", "alice", ...args]);
}

async function unlock(locked: Locked): Promise<void> {
  await fleet.ok(["unlock", "s", "--token", locked.lease?.token ?? ""]);
}

describe("lock and unlock", () => {
  it("lock prints only the token, or the lease as JSON, and unlock prints the session", async () => {
    const token = await fleet.ok(["lock", "s", "--user", "alice"]);
    expect(token.trimEnd()).toEqual(TOKEN);
    expect(await fleet.ok(["unlock", "s", "--token", token.trimEnd()])).toBe("s\n");

    const locked = await lock();
    expect(locked).toEqual({ lease: { ...DETACHED, token: TOKEN } });
    const { acquiredAt = "", expiresAt = "" } = locked.lease ?? {};
    expect(Date.parse(expiresAt) - Date.parse(acquiredAt)).toBe(300_000);
    expect(await fleet.json(["unlock", "s", "--token", locked.lease?.token ?? ""])).toEqual({ unlocked: "s" });
  });

  it("lock on a terminal also prints how to release the lease, with and without its token", async () => {
    await using terminal = new Terminal(fleet, ["lock", "s", "--user", "alice"], { columns: 120 });
    expect(await terminal.done).toBe(0);
    expect(terminal.screen.lines).toEqual([TOKEN, ...WAYS_TO_END]);
    await fleet.ok(["lock", "s", "--user", "alice", "--steal", "--reason", "lost", "--", "true"]);
    expect(await fleet.ok(["lock", "s", "--show"])).toBe("No lease.\n");
  });

  it("lock --show and list show a lease to the owner and members, but no command and no file shows its token", async () => {
    expect(await fleet.json(["lock", "s", "--show"])).toEqual({ lease: null });
    expect(await fleet.ok(["lock", "s", "--show"])).toBe("No lease.\n");
    const locked = await lock("--ttl", "1h");
    for (const user of [[], ["--user", "alice"], ["--user", "bob"]]) {
      expect(await fleet.json(["lock", "s", "--show", ...user])).toEqual({ lease: { ...DETACHED, ttlMs: 3_600_000 } });
    }
    const [heading = "", row = "", ...notes] = (await fleet.ok(["lock", "s", "--show"])).split("\n");
    expect(notes.slice(0, -1)).toEqual(["", ...WAYS_TO_END]);
    expect(heading.split(/ {2,}/)).toEqual(["SESSION", "HOLDER", "AGE", "ENDS IN", "FENCE", "TAKEN OVER SINCE"]);
    expect(row.split(/ {2,}/)).toEqual(["s", "alice", expect.stringMatching(/^\d+s$/), "59m", expect.anything(), "-"]);
    expect(await fleet.json(["list", "--user", "alice"])).toMatchObject({
      sessions: [{ id: "s", lease: { ...DETACHED, ttlMs: 3_600_000 } }],
    });
    const files = (await readdir(fleet.root, { recursive: true, withFileTypes: true })).filter((entry) =>
      entry.isFile(),
    );
    expect(files.length).toBeGreaterThan(0);
    for (const { parentPath, name } of files) {
      expect(readFileSync(join(parentPath, name), "utf8")).not.toContain(locked.lease?.token);
    }
    await unlock(locked);
  });

  it("lock gives leases to the owner and to a member, each with a higher fence", async () => {
    const fences: number[] = [];
    for (const user of ["alice", "bob", "alice"]) {
      const locked = await fleet.json<Locked>(["lock", "s", "--user", user]);
      expect(locked.lease).toMatchObject({ holder: user });
      fences.push(locked.lease?.fence ?? 0);
      await unlock(locked);
    }
    expect(fences).toEqual(fences.toSorted((a, b) => a - b));
    expect(new Set(fences).size).toBe(3);
  });

  it("unlock takes the token from the variable that --token-env names", async () => {
    const locked = await lock();
    const env = { MINE: locked.lease?.token };
    expect(await fleet.refusal(3, ["unlock", "s", "--token-env", "OTHER"], { env })).toMatchObject({
      code: "FLEET_TOKEN_UNAVAILABLE",
      message: "The environment variable OTHER, which --token-env names, is not set or is empty.",
    });
    await fleet.ok(["unlock", "s", "--token-env", "MINE"], { env });
  });

  it.each([
    ["a wrong token", ["s", "--token", "0".repeat(64)]],
    ["a text that is not a token", ["s", "--token", "x"]],
    ["a session that nobody locked", ["foreign", "--token", "x"]],
    ["an unknown session", ["unknown", "--token", "x"]],
  ])("unlock refuses %s, and releases no lease", async (_, args) => {
    const locked = await lock();
    expect(await fleet.refusal(5, ["unlock", ...args])).toMatchObject({ code: "FLEET_LEASE_LOST" });
    await unlock(locked);
  });

  it("unlock refuses the token of an expired lease, even while nobody else holds the lease", async () => {
    const locked = await lock("--ttl", "1s");
    await expect
      .poll(() => fleet.json(["lock", "s", "--show"]), { timeout: 20_000, interval: 200 })
      .toEqual({ lease: null });
    expect(await fleet.refusal(5, ["unlock", "s", "--token", locked.lease?.token ?? ""])).toMatchObject({
      code: "FLEET_LEASE_LOST",
    });
  });
});

describe("waiting", () => {
  it("a lock that waits gets the lease when the holder releases it", async () => {
    const locked = await lock();
    const waiting = fleet.start(["lock", "s", "--user", "bob", "--json"]);
    const queued = () => openStore("file", fleet.root).leases.acquire(probe);
    const probe = { sessionId: "s", holder: "p", token: "p", ttlMs: 1, placeMs: 1 };
    await expect.poll(queued).toMatchObject({ granted: false, ahead: 1 });
    await unlock(locked);
    const next = (await waiting.done).json<Locked>();
    expect(next.lease).toMatchObject({ holder: "bob" });
    await unlock(next);
  });

  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("on %s, a waiting lock exits with %i, leaves the queue and runs no command", async (signal, code) => {
    const locked = await lock();
    const never = join(fleet.folder, `never-${signal}`);
    for (const args of [[], ["--", "touch", never]]) {
      const waiting = fleet.start(["lock", "s", "--user", "bob", ...args]);
      const probe = { sessionId: "s", holder: "p", token: "p", ttlMs: 1, placeMs: 1 };
      const ahead = (n: number) => ({ granted: false, ahead: n });
      await expect.poll(() => openStore("file", fleet.root).leases.acquire(probe)).toMatchObject(ahead(1));
      waiting.child.kill(signal);
      expect(await waiting.done).toMatchObject({ code, stdout: "" });
      expect(await openStore("file", fleet.root).leases.acquire(probe)).toMatchObject(ahead(0));
    }
    expect(existsSync(never)).toBe(false);
    await unlock(locked);
  });
});

describe("taking over", () => {
  it("lock --steal needs a reason, and lock --show shows that reason", async () => {
    const locked = await lock();
    for (const args of [
      ["--steal"],
      ["--steal", "--reason", ""],
      ["--steal", "--reason", "  "],
      ["--reason", "x"],
      ["--steal", "--reason", "x".repeat(501)],
    ]) {
      const error = await fleet.refusal(2, ["lock", "s", "--user", "bob", ...args]);
      expect(error).toMatchObject({ code: "FLEET_USAGE_INVALID", message: expect.stringContaining("--reason") });
    }
    expect(await fleet.json(["lock", "s", "--show"])).toMatchObject({ lease: { holder: "alice" } });
    const reason = "alice's laptop\u001b[31m\nfell into the sea";
    const stolen = await fleet.json<Locked>(["lock", "s", "--user", "bob", "--steal", "--reason", reason]);
    expect(stolen.lease?.fence).toBeGreaterThan(locked.lease?.fence ?? Number.POSITIVE_INFINITY);
    expect(await fleet.json(["lock", "s", "--show"])).toMatchObject({ lease: { holder: "bob", stealReason: reason } });
    expect(await fleet.ok(["lock", "s", "--show"])).not.toMatch(RAW);
    await fleet.refusal(5, ["unlock", "s", "--token", locked.lease?.token ?? ""]);
    await unlock(stolen);
  });
});

describe("lock -- COMMAND", () => {
  it("lock -- COMMAND runs COMMAND with all its flags under the lease, and exits with its exit code", async () => {
    const script = 'printf "%s|" "$COPILOTFLEET_LEASE_SESSION" "$COPILOTFLEET_LEASE_FENCE" "$@"; exit 7';
    const { code, stdout, stderr } = await fleet.run(
      ["lock", "s", "--user", "alice", "--", "sh", "-c", script, "sh", "--json", "--user", "x y", "--"],
      {},
    );
    expect({ code, stderr }).toEqual({ code: 7, stderr: "" });
    expect(stdout).toMatch(/^s\|\d{13,}\|--json\|--user\|x y\|--\|$/);
    expect(await fleet.json(["lock", "s", "--show"])).toEqual({ lease: null });
  });

  it("lock -- COMMAND gives the command its standard input, and a token that is valid only while the command runs", async () => {
    const script = 'cat > "$1"; printf %s "$COPILOTFLEET_LEASE_TOKEN" > "$2"; grep -c . "$1"';
    const [input, token] = [join(fleet.folder, "input"), join(fleet.folder, "token")];
    const args = ["lock", "s", "--user", "alice", "--", "sh", "-c", script, "sh", input, token];
    const { stdout, code } = await fleet.run(args, { input: "one\ntwo\n" });
    expect({ stdout, code }).toEqual({ stdout: "2\n", code: 0 });
    expect(readFileSync(input, "utf8")).toBe("one\ntwo\n");
    expect(readFileSync(token, "utf8")).toEqual(TOKEN);
    await fleet.refusal(5, ["unlock", "s", "--token", readFileSync(token, "utf8")]);
  });

  it("lock --json -- COMMAND prints only the lease on standard output, and the command's output on stderr", async () => {
    const args = ["lock", "s", "--user", "alice", "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 3"];
    const { code, stderr, json } = await fleet.run(args);
    expect({ code, stderr }).toEqual({ code: 3, stderr: "out\nerr\n" });
    expect(json()).toEqual({ lease: LEASE, exitCode: 3 });
  });

  it.each([
    [
      "a command that is not there",
      ["no-such-command"],
      127,
      /^"no-such-command" cannot be run: there is no such command/,
    ],
    ["a file that is not executable", ["./plain"], 126, /^"\.\/plain" cannot be run: it is not an executable file/],
  ])("lock -- COMMAND exits as a shell does for %s, and releases the lease", async (_, command, code, message) => {
    writeFileSync(join(fleet.folder, "plain"), "text");
    const ran = await fleet.run(["lock", "s", "--user", "alice", "--", ...command]);
    expect(ran).toMatchObject({ code, stdout: "", stderr: expect.stringMatching(message) });
    expect(await fleet.json(["lock", "s", "--show"])).toEqual({ lease: null });
  });

  it("lock -- COMMAND exits with 137 when SIGKILL ended the command, as a shell does", async () => {
    const ran = await fleet.run(["lock", "s", "--user", "alice", "--", "sh", "-c", "kill -9 $$"]);
    expect(ran).toMatchObject({ code: 137, stdout: "", stderr: "" });
  });

  it.each([
    ["SIGINT", "INT"],
    ["SIGTERM", "TERM"],
    ["SIGHUP", "HUP"],
  ] as const)("lock -- COMMAND passes %s on to the command, and exits when the command does", async (signal, name) => {
    const script = `trap 'echo got ${name}; exit 9' ${name}; echo ready; while :; do sleep 0.05; done`;
    const running = fleet.start(["lock", "s", "--user", "alice", "--", "sh", "-c", script]);
    if (running.child.stdout !== null) await once(running.child.stdout, "data");
    running.child.kill(signal);
    // The shell may report on standard error that the signal ended its sleep.
    expect(await running.done).toMatchObject({ code: 9, stdout: `ready\ngot ${name}\n` });
    expect(await fleet.json(["lock", "s", "--show"])).toEqual({ lease: null });
  });

  it("if five processes run lock -- COMMAND on one session at once, their commands run one after another", async () => {
    const file = join(fleet.folder, "turns");
    writeFileSync(file, "");
    const script = 'n=$(cat "$1" | wc -l); sleep 0.1; echo "$n" >> "$1"';
    const args = ["--wait", "1m", "--", "sh", "-c", script, "sh", file];
    const turns = ["alice", "bob", "alice", "bob", "alice"].map((user) =>
      fleet.run(["lock", "s", "--user", user, ...args]),
    );
    for (const ran of await Promise.all(turns)) expect(ran).toMatchObject({ code: 0, stderr: "" });
    expect(readFileSync(file, "utf8").trim().split("\n").map(Number)).toEqual([0, 1, 2, 3, 4]);
  });
});

describe("usage errors of lock and unlock", () => {
  it("lock gives the same answer for another user's session as for one that does not exist", async () => {
    const ways = (id: string) => [
      ["lock", id, "--user", "alice"],
      ["lock", id, "--user", "alice", "--show"],
      ["lock", id, "--user", "alice", "--steal", "--reason", "x"],
    ];
    for (const [index, args] of ways("foreign").entries()) {
      const foreign = await fleet.refusal(4, args);
      const unknown = await fleet.refusal(4, ways("unknown")[index] ?? []);
      expect(foreign.code).toBe("FLEET_SESSION_NOT_FOUND");
      expect(JSON.stringify(foreign)).toBe(JSON.stringify(unknown).replaceAll("unknown", "foreign"));
    }
    const ran = await fleet.run(["lock", "foreign", "--user", "alice", "--json", "--", "touch", "foreign"]);
    expect(ran).toMatchObject({ code: 4, stderr: "" });
    expect(ran.json()).toMatchObject({ error: { code: "FLEET_SESSION_NOT_FOUND" } });
    expect(existsSync(join(fleet.folder, "foreign"))).toBe(false);
    expect(await openStore("file", fleet.root).leases.read("foreign")).toBeNull();
    expect(existsSync(join(fleet.root, "leases", "unknown"))).toBe(false);
  });

  it.each(["0", "0s", "-5m", "10", "5 parsecs", "NaN", "Infinity", "", " 1h", "999ms", "25d", "999999999d", "1e4s"])(
    "lock refuses a TTL of %j",
    async (ttl) => {
      expect(await fleet.refusal(2, ["lock", "s", "--user", "alice", `--ttl=${ttl}`])).toMatchObject({
        code: "FLEET_USAGE_INVALID",
        message: expect.stringMatching(
          /^--ttl is ".*", (?:which|and) .*\. Allowed: a number with a unit .* from 1s to 24d/,
        ),
      });
    },
  );

  it("unlock does not repeat a token that was given as the name of a variable", async () => {
    const token = "0123456789abcdef".repeat(4);
    const { stderr, stdout } = await fleet.run(["unlock", "s", "--token-env", token]);
    expect(stderr + stdout).not.toContain(token);
  });
});
