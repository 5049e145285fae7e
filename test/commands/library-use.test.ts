import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Fleet, type FleetError, type FleetOptions, isFleetError } from "../../src/index.js";
import { testFleet } from "../fixtures/commands/cli.js";

const command = testFleet();
const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const open = (options: FleetOptions = {}) => Fleet.open({ env: command.env, cwd: command.folder, ...options });

let fleet: Fleet;
beforeEach(async () => {
  fleet = await open();
});
afterEach(async () => {
  await fleet.close();
});

async function refusal(work: () => unknown): Promise<FleetError> {
  const error: unknown = await (async () => await work())().then(
    () => new Error("nothing was refused"),
    (reason: unknown) => reason,
  );
  if (!isFleetError(error)) throw error;
  return error;
}

/** The methods of a fleet or of one of its groups, as a caller in JavaScript sees them. */
type Untyped = Record<string, (...args: unknown[]) => unknown>;

/** Maps each method, such as `servers.stop`, to the group that has it. */
function methods(): Map<string, Untyped> {
  const found = new Map<string, Untyped>();
  for (const [name, group] of Object.entries(fleet)) {
    if (["config", "stateRoot"].includes(name)) continue;
    for (const method of Object.getOwnPropertyNames(Object.getPrototypeOf(group))) {
      if (method !== "constructor") found.set(`${name}.${method}`, group);
    }
  }
  return found;
}

async function call(method: string, ...args: unknown[]): Promise<FleetError> {
  const [name = ""] = method.split(".").slice(-1);
  const object = methods().get(method);
  return await refusal(async () => {
    const given = object?.[name]?.apply(object, args);
    if (name.startsWith("follow")) for await (const _ of given as AsyncIterable<unknown>);
    await given;
  });
}

describe("an error message to a program", () => {
  it("an error names the option in the library, and the flag in the command", async () => {
    expect((await refusal(() => open({ config: { pool: { servers: 0 } } }))).message).toMatch(
      /^config\.pool\.servers is/,
    );
    const unknown = await refusal(() => open({ config: { pol: {} } as FleetOptions["config"] & object }));
    expect(unknown.message).toContain("(the option config.pol)");
    expect((await refusal(() => fleet.tokens.issue("a b"))).message).toMatch(/^user "a b" is not a user id/);
    expect((await refusal(() => fleet.sessions.create({ user: "a", members: ["a"] }))).message).toMatch(/^members "a"/);

    await fleet.sessions.create({ user: "alice", sessionId: "named" });
    const taken = await refusal(() => fleet.sessions.create({ user: "alice", sessionId: "named" }));
    expect(taken.suggestions).toContain("Choose another sessionId, or leave it out for a new one.");
    const atCommand = await command.refusal(5, ["create", "--user", "alice", "--id", "named"]);
    expect(atCommand.suggestions).toContain("Choose another --id, or leave it out for a new one.");

    const lease = await fleet.leases.acquire("named", { user: "alice", ttl: "60s" });
    const locked = await refusal(() => fleet.leases.acquire("named", { user: "alice", wait: 0 }));
    expect(locked.suggestions).toContain('Wait longer for it with wait: "5m".');
    const refused = await command.refusal(5, ["lock", "named", "--user", "alice", "--wait", "0"]);
    expect(refused.suggestions).toContain("Wait longer for it with --wait 5m.");
    await lease.release();
  });
});

describe("a fleet that is closed", () => {
  it("a closed fleet refuses every call and every turn of its sessions, and starts no server", async () => {
    const session = await fleet.sessions.create({ user: "alice" });
    const door = await fleet.doors.open({ listen: "127.0.0.1:0" });
    await fleet.close();
    await fleet.close();
    const all = [...methods().keys()];
    expect(all).toEqual(expect.arrayContaining(["servers.stop", "pool.drain", "sessions.gc"]));
    for (const method of all) {
      const { code } = await call(method, "x", "y", {});
      expect(code, method).toBe("FLEET_CLOSED");
    }
    await command.ok(["stop", "--all"]);
    await expect(session.sendAndWait("hi")).rejects.toMatchObject({ code: "FLEET_CLOSED" });
    const client = new CopilotClient({ connection: RuntimeConnection.forUri(door.url, { connectionToken: "x" }) });
    await expect(client.start()).rejects.toThrow();
    expect(command.processes()).toEqual([]);
    expect(fleet.takeWarnings()).toEqual([]);
  });

  it("a program can exit after it has closed its fleet, even if a session, a front door and a lease were open", async () => {
    const { code, stdout } = await run(`
      import { Fleet } from "copilotfleet";
      const fleet = await Fleet.open({ config: { serve: { listen: "127.0.0.1:0", metrics: "127.0.0.1:0" } } });
      const session = await fleet.sessions.create({ user: "ender" });
      await fleet.sessions.send(session, "hi");
      await fleet.doors.open({ listen: "127.0.0.1:0" });
      await fleet.pool.supervise({ log: () => undefined });
      await fleet.leases.acquire(session.sessionId, { user: "ender" });
      await fleet.close();
      await session.sendAndWait("again").catch((error) => console.log(error.code));
      await fleet.sessions.create({ user: "ender" }).catch((error) => console.log(error.code));
    `);
    expect({ code, stdout }).toEqual({ code: 0, stdout: "FLEET_CLOSED\nFLEET_CLOSED\n" });
  });
});

describe("a caller in JavaScript", () => {
  /** Values that are wrong as the first argument of every method that takes one. */
  const NONSENSE = [5, null, Symbol("x"), () => undefined, [[]], Number.NaN];

  it("every method that takes arguments refuses arguments of the wrong type with a usage error", async () => {
    const takesNothing: string[] = [];
    for (const [method, object] of methods()) {
      if (object[method.split(".").at(-1) ?? ""]?.length === 0) takesNothing.push(method);
      else {
        for (const value of NONSENSE) {
          const error = await call(method, value, value, value);
          expect({ method, exit: error.exit, value: String(value) }).toMatchObject({ exit: 2 });
        }
      }
    }
    expect(takesNothing.filter((method) => !method.startsWith("records."))).toEqual([
      "users.list",
      "pool.state",
      "pool.undrain",
      "pool.supervisorPid",
      "pool.supervisor",
      "hosts.list",
      "hosts.names",
      "hosts.overview",
      "events.verify",
    ]);
    expect(await fleet.servers.list()).toEqual(expect.any(Array));
  });

  it("Fleet.open refuses options of the wrong type with a usage error", async () => {
    const untyped = Fleet.open as unknown as (options: unknown) => Promise<Fleet>;
    for (const options of ["x", null, { config: 5 }, { cwd: 1 }]) {
      expect(await refusal(() => untyped(options))).toMatchObject({ exit: 2 });
    }
  });
});

describe("the front door of a program", () => {
  it.each([
    ["an option", { listen: "127.0.0.1:0" }, {}],
    ["the configuration", {}, { serve: { listen: "127.0.0.1:0" } }],
  ])("doors.open listens on an address from %s, and clients connect to its url", async (_, options, config) => {
    await using other = await open({ config });
    await using door = await other.doors.open(options);
    expect(door.url).toBe(`127.0.0.1:${door.address.port}`);
    expect(door.address.port).toBeGreaterThan(0);
    const { token } = await other.tokens.issue("alice", { ttl: 60_000 });
    const client = new CopilotClient({ connection: RuntimeConnection.forUri(door.url, { connectionToken: token }) });
    await client.start();
    await client.stop();
    await door.close({ timeout: "1s" });
  });
});

describe("durations", () => {
  it("duration options take a string or milliseconds", async () => {
    const ttls = await Promise.all(
      ["1h", 3_600_000].map(async (ttl) => {
        const session = await fleet.sessions.create({ user: "time", ttl, wait: "1m" });
        return (await fleet.sessions.leave(session)).ttlMs;
      }),
    );
    expect(ttls).toEqual([3_600_000, 3_600_000]);
    const session = await fleet.sessions.create({ user: "time", wait: 60_000 });
    for (const options of [{ timeout: "50ms" }, { timeout: 50 }]) {
      const error = await refusal(() => fleet.sessions.send(session, "!delay 60000 x", options));
      expect(error).toMatchObject({ code: "FLEET_TURN_TIMEOUT" });
      expect(error.suggestions).toContain('Give it longer with timeout: "10m".');
    }
    await fleet.sessions.leave(session);
    const { id } = await fleet.servers.spawn("time", { wait: 60_000 }).then(({ server }) => server);
    for (const options of [{ drainTimeout: "5s" }, { drainTimeout: 5_000 }]) {
      expect((await fleet.servers.stop([id], options)).stopped).toMatchObject([{ id }]);
    }
    expect(await fleet.sessions.gc({ ttl: 3_600_000, dryRun: true })).toMatchObject({ dryRun: true });
    expect(await refusal(() => fleet.sessions.gc({ ttl: -1 }))).toMatchObject({ code: "FLEET_USAGE_INVALID" });
  });
});

describe("a reply", () => {
  it("a reply has the same shape from send and from use", async () => {
    const session = await fleet.sessions.create({ user: "alice", sessionId: "shape" });
    const sent = await fleet.sessions.send(session, "one");
    expect(sent).toMatchObject({ text: "[turn 1] one", event: { type: "assistant.message" } });
    const exchanged = await fleet.sessions.use("shape", "two", { user: "alice" });
    expect(exchanged).toMatchObject({
      text: "[turn 2] two",
      event: { type: "assistant.message" },
      session: { id: "shape" },
    });
  });

  it("several loops can read the same reply at once, and a loop after the end of the reply still gets all pieces", async () => {
    const session = await fleet.sessions.create({ user: "alice", sessionId: "pieces" });
    const collect = async (reply: AsyncIterable<string>) => {
      const pieces: string[] = [];
      for await (const piece of reply) pieces.push(piece);
      return pieces;
    };
    const deltas: string[] = [];
    const reply = fleet.sessions.send(session, "one two three", { onDelta: (text) => deltas.push(text) });
    const [first, second] = await Promise.all([collect(reply), collect(reply)]);
    expect(first.join("")).toBe("[turn 1] one two three");
    expect(second).toEqual(first);
    expect(deltas.join("")).toBe((await reply).text);
    expect(await collect(reply)).toEqual(["[turn 1] one two three"]);
    const exchanged = fleet.sessions.use("pieces", "four", { user: "alice" });
    expect((await collect(exchanged)).join("")).toBe("[turn 2] four");
    expect((await exchanged).session.id).toBe("pieces");
  });

  it("a loop over a reply throws the error of the turn, and leaving a loop early does not end the turn", async () => {
    const session = await fleet.sessions.create({ user: "alice", sessionId: "failing" });
    const failing = await refusal(async () => {
      for await (const _ of fleet.sessions.send(session, "!fail no"));
    });
    expect(failing.code).toBe("FLEET_TURN_FAILED");
    const whole = await fleet.sessions.create({ user: "alice" });
    const reply = fleet.sessions.send(whole, "one two three");
    for await (const _ of reply) break;
    expect((await reply).text).toMatch(/one two three$/);
  });

  it("a reply from a session that does not stream arrives as one piece", async () => {
    const session = await fleet.sessions.create({ user: "alice", streaming: false });
    const pieces: string[] = [];
    for await (const piece of fleet.sessions.send(session, "one two")) pieces.push(piece);
    expect(pieces).toEqual(["[turn 1] one two"]);
  });
});

describe("the documentation", () => {
  it.each([
    ["README.md", "\n## Library\n"],
    ["docs/library.md", "# Library\n"],
  ])("the library sample in %s runs exactly as printed", async (path, heading) => {
    const page = readFileSync(join(ROOT, path), "utf8");
    const section = page.slice(page.indexOf(heading));
    const [, sample = ""] = /```ts\n([\s\S]*?)```/.exec(section) ?? [];
    expect(sample).toContain('from "copilotfleet"');
    const { code, stdout, stderr } = await run(sample);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toContain("[turn 1] Hello");
  });
});

/** Runs a program in a separate folder in which the built package is installed. */
async function run(source: string) {
  const folder = join(command.folder, "program");
  mkdirSync(join(folder, "node_modules"), { recursive: true });
  for (const [name, target] of [
    ["copilotfleet", ROOT],
    ["@github", join(ROOT, "node_modules/@github")],
  ] as const) {
    try {
      symlinkSync(target, join(folder, "node_modules", name));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
  }
  const file = join(folder, "sample.mts");
  writeFileSync(file, source);
  const tsx = join(ROOT, "node_modules/tsx/dist/cli.mjs");
  const child = spawn(process.execPath, [tsx, file], {
    cwd: folder,
    env: command.env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const timer = setTimeout(() => child.kill("SIGKILL"), 150_000);
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, "close")]);
  clearTimeout(timer);
  return { code: code as number | null, stdout, stderr };
}
