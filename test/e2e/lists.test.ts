import { hostname } from "node:os";
import { beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { parse } from "yaml";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { damageRecord } from "../fixtures/store/database.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";

const fleet = testFleet();

/** Records a stopped server, which needs no process. */
async function addServer(user: string): Promise<void> {
  const stopped = { state: "stopped", desired: "stopped", process: null, port: null, startedAt: null } as const;
  await openStore("file", fleet.root).registry.update(({ servers }) => {
    const createdAt = `2026-01-0${Object.keys(servers).length + 1}T00:00:00.000Z`;
    servers[`${user}-1`] = serverRecord(`${user}-1`, { ...stopped, user, createdAt });
  });
}

beforeAll(async () => {
  const store = openStore("file", fleet.root);
  for (const user of ["bob", "alice"]) await addServer(user);
  for (const [id, owner, day] of [
    ["old", "alice", 1],
    ["new", "bob", 3],
    ["mid", "+eve", 2],
  ] as const) {
    const at = `2026-01-0${day}T00:00:00.000Z`;
    await store.sessions.create(
      sessionRecord(id, { owner, serverId: `${owner}-1`, createdAt: at, lastUsedAt: at, purpose: "=1+1" }),
    );
  }
  await fleet.ok(["token", "issue", "--user", "alice", "--ttl", "30d"]);
});

describe("the format of a list", () => {
  it.each([[["ps"]], [["list"]], [["token", "list"]], [["top"]]])(
    "%j prints the same with -o json as with --json",
    async (args) => {
      const json = await fleet.ok([...args, "--json"]);
      for (const flags of [["-o", "json"], ["-ojson"], ["-o=json"], ["--output", "json"], ["--output=json"]])
        expect(await fleet.ok([...args, ...flags]), flags.join(" ")).toBe(json);
      expect(parse(await fleet.ok([...args, "-o", "yaml"]))).toEqual(JSON.parse(json));
    },
  );

  it("an error with -o json is the same JSON as with --json, even if the command line is wrong", async () => {
    for (const wrong of [["--sort", "colour"], ["--usr"], ["--limit", "0"]]) {
      const [json, other] = await Promise.all(
        [["--json"], ["-o", "json"]].map(async (flags) => await fleet.run(["ps", ...flags, ...wrong])),
      );
      expect(other).toMatchObject({ code: 2, stderr: "", stdout: json?.stdout });
      expect(json?.json()).toMatchObject({ error: { code: "FLEET_USAGE_INVALID" } });
    }
  });

  it("deploy systemd --output json writes to the folder json, because its --output does not name a format", async () => {
    // Run the command in its own process, so that it writes below the folder of the fleet.
    expect(await fleet.ok(["deploy", "systemd", "--output", "json"], { ownProcess: true })).toMatch(/^json\//);
  });

  it("-q prints only ids, -o name prints KIND/ID, and --no-headers prints a table without its heading", async () => {
    expect(await fleet.ok(["ps", "-q"])).toBe("bob-1\nalice-1\n");
    expect(await fleet.ok(["list", "--quiet"])).toBe("new\nmid\nold\n");
    expect(await fleet.ok(["list", "-o", "name"])).toBe("session/new\nsession/mid\nsession/old\n");
    expect(await fleet.ok(["ps", "-o", "name"])).toBe("server/bob-1\nserver/alice-1\n");
    expect(await fleet.ok(["token", "list", "-o", "name"])).toMatch(/^token\/[0-9a-f]{16}\n$/);
    expect(await fleet.ok(["ps", "--no-headers"])).toMatch(/^bob-1 .*\nalice-1 .*\n$/);
  });

  it("--sort and --limit apply to every format", async () => {
    expect(await fleet.ok(["list", "-q", "--sort", "session"])).toBe("mid\nnew\nold\n");
    expect(await fleet.ok(["list", "-q", "--sort", "age:desc", "--limit", "2"])).toBe("old\nmid\n");
    expect(await fleet.json(["ps", "--sort", "user", "--limit", "1"])).toMatchObject({ servers: [{ id: "alice-1" }] });
  });

  it("top prints its servers in every list format, and applies --sort and --limit to its own screen, too", async () => {
    expect(await fleet.ok(["top", "-q", "--sort", "user"])).toBe("alice-1\nbob-1\n");
    expect(await fleet.ok(["top", "-o", "name", "--limit", "1"])).toBe("server/bob-1\n");
    expect(await fleet.ok(["top", "--no-headers"])).toMatch(/^bob-1 .*\nalice-1 .*\n$/);
    expect(await fleet.ok(["top", "-o", "csv"])).toMatch(
      /^id,hostName,user,url,pid,state,turns,latencyMs,.*\r\nbob-1,/,
    );
    expect(await fleet.ok(["status", "--sort", "user", "--limit", "1"])).toMatch(
      /^HOST .*\n\nSERVER .*\nalice-1 .*\n\nSessions: 0 active, 3 idle .*\nUsers: 3 {3}Servers: 0 of 2 running .*\n$/s,
    );
    expect(await fleet.json(["top", "--sort", "user", "--limit", "1"])).toMatchObject({
      servers: [{ id: "alice-1" }],
      users: [{ user: "+eve" }, { user: "alice" }, { user: "bob" }],
    });
    expect(await fleet.run(["status", "--watch"])).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/^Error: --watch and --once cannot be used together\. \[FLEET_USAGE_INVALID\]\n/),
    });
  });

  it("a list in CSV has exact times and sizes, and no text that a spreadsheet would run as a formula", async () => {
    const [heading, ...rows] = (await fleet.ok(["list", "-o", "csv"])).split("\r\n");
    expect(heading).toBe(
      "id,owner,host,serverId,state,createdAt,lastUsedAt,sizeBytes,leaseHolder,kind,members,persistence,model,expiresAt,purpose,title",
    );
    expect(rows[1]).toMatch(
      /^mid,'\+eve,,'\+eve-1,idle,2026-01-02T00:00:00\.000Z,.*,2026-02-01T00:00:00\.000Z,'=1\+1,$/,
    );
    expect(rows.at(-1)).toBe("");
    expect(await fleet.ok(["token", "list", "-o", "csv", "--no-headers"])).toMatch(
      /^[0-9a-f]{16},alice,\S+Z,\S+Z,use,,,\r\n$/,
    );
  });

  it("a list without rows prints nothing with -q, -o name and --no-headers, and only the headings in CSV", async () => {
    const nobody = ["token", "list", "--user", "nobody"];
    expect(await fleet.ok(nobody)).toBe("No tokens.\n");
    for (const flags of [["-q"], ["-o", "name"], ["--no-headers"]])
      expect(await fleet.ok([...nobody, ...flags])).toBe("");
    expect(await fleet.ok([...nobody, "-o", "csv"])).toBe(
      "id,user,createdAt,expiresAt,scopes,label,sessionId,lastUsedAt\r\n",
    );
  });
});

describe("an unreadable session record", () => {
  it("list, top and describe skip an unreadable record with a warning, but store migrate copies nothing", async () => {
    onTestFinished(damageRecord(fleet.root, "session", "old"));
    // These commands read no records of sessions.
    expect(await fleet.ok(["ps", "-q"])).toBe("bob-1\nalice-1\n");
    expect(await fleet.ok(["stop", "--all"])).toBe("Nothing to stop.\n");
    const shown = [
      [["list", "-q"], /^new\nmid\n$/],
      [["list", "-q", "--user", "alice"], /^$/],
      [["top", "--once"], /Sessions: 0 active, 2 idle/],
    ] as const;
    for (const [args, stdout] of shown) {
      const ran = await fleet.run(args);
      expect(ran, args.join(" ")).toMatchObject({ code: 0, stdout: expect.stringMatching(stdout) });
      expect(ran.stderr, args.join(" ")).toMatch(
        /^Warning: Session "old" is left out, because its record cannot be read\. [^\n]*\n$/,
      );
      expect(ran.stderr).toMatch(/ Next steps: copilotfleet doctor; copilotfleet doctor --fix\n$/);
    }
    const unknown = await fleet.run(["describe", "zzz"]);
    expect(unknown.code).toBe(4);
    expect(unknown.stderr).toMatch(/^Warning: Session "old" is left out, /);
    expect(unknown.stderr).toContain('Error: There is no server, session or user "zzz". [FLEET_NAME_NOT_FOUND]\n');
    const copy = await fleet.refusal(7, ["store", "migrate", "--to", "redis://127.0.0.1:1/0"]);
    expect(copy).toMatchObject({
      code: "FLEET_STATE_CORRUPT",
      message: expect.stringContaining('Nothing was copied, because the record of session "old" cannot be read. '),
    });
    expect(copy.suggestions).toContain("copilotfleet doctor --fix");
  });
});

describe("the filters of a list", () => {
  it("ps --user, --state and --host show only the servers that match all of them", async () => {
    expect(await fleet.ok(["ps", "-q", "--user", "alice"])).toBe("alice-1\n");
    expect(await fleet.ok(["ps", "-q", "--state", "stopped"])).toBe("bob-1\nalice-1\n");
    expect(await fleet.ok(["ps", "-q", "--state", "ready", "--user", "alice"])).toBe("");
    expect(await fleet.ok(["ps", "--user", "zoe"])).toBe("No servers. Start one: copilotfleet spawn --user zoe\n");
    expect(await fleet.ok(["ps", "--user", "zoe", "--state", "ready"])).toBe("No servers.\n");
    expect(await fleet.ok(["ps", "-q", "--host", hostname().toLowerCase()])).toBe("bob-1\nalice-1\n");
  });

  it("list --purpose, --host and --model show only the sessions that match all of them", async () => {
    const store = openStore("file", fleet.root);
    await store.sessions.create(sessionRecord("own", { purpose: "review", model: "gpt-5" }));
    await store.sessions.create(sessionRecord("plain", { purpose: "review" }));
    const env = { COPILOTFLEET_SESSION_MODEL: "gpt-5-mini" };
    const ids = async (...flags: string[]) => await fleet.ok(["list", "-q", "--sort", "session", ...flags], { env });
    expect(await ids("--purpose", "review")).toBe("own\nplain\n");
    expect(await ids("--purpose", "rev")).toBe("");
    expect(await ids("--model", "gpt-5")).toBe("own\n");
    expect(await ids("--model", "gpt-5-mini", "--purpose", "review")).toBe("plain\n");
    expect(await ids("--host", hostname().toLowerCase(), "--model", "gpt-5", "--user", "alice")).toBe("own\n");
    await fleet.ok(["delete", "own", "plain"]);
  });

  it.each([
    [["ps", "--state", "idel"], /^--state is "idel"\. Allowed: starting, ready, .* or failed$/],
    [["list", "--state", "ready"], /^--state is "ready"\. Allowed: active, idle, draining or gone$/],
    [["ps", "--host", "h9"], /^--host "h9" is not a host of this fleet\. Use \S+\.$/],
    [["list", "--host", "h9"], /^--host "h9" is not a host of this fleet\. Use \S+\.$/],
  ])("%j is refused, and the error names the allowed values", async (args, message) => {
    expect(await fleet.refusal(2, args)).toMatchObject({
      code: "FLEET_USAGE_INVALID",
      message: expect.stringMatching(message),
    });
  });
});

describe("a list with --watch", () => {
  it("a watched list on a terminal shows each change, and Ctrl-C restores the screen and exits with 130", async () => {
    await using terminal = new Terminal(fleet, ["ps", "--watch"]);
    await terminal.frameShows(/^SERVER +USER .*\nbob-1 /);
    await addServer("carol");
    await terminal.frameShows(/^carol-1 /m);
    terminal.type("\x03");
    expect(await terminal.done).toBe(130);
    expect(terminal.raw.endsWith("\x1b[?7h\x1b[?25h\x1b[?1049l")).toBe(true);
  });

  it("a watched list on a terminal ends with exit code 0 when the user presses q", async () => {
    await using terminal = new Terminal(fleet, ["list", "--watch", "-o", "wide"]);
    await terminal.frameShows(/^SESSION /);
    terminal.type("q");
    expect(await terminal.done).toBe(0);
  });

  it.each([
    [["-o", "name"], /^server\/bob-1\nserver\/alice-1\n[\s\S]*\n\nserver\/bob-1\n/],
    [["-o", "yaml"], /^pool:\n[\s\S]*\n---\npool:\n/],
    [["--json"], /^\{"pool":.*\}\n\{"pool":.*\}\n/],
  ])(
    "a watched list with %j in a pipe prints one list after the other, and exits with 130 on SIGINT",
    async (flags, two) => {
      const watching = fleet.start(["ps", "--watch", ...flags]);
      let text = "";
      watching.child.stdout?.on("data", (piece) => {
        text += String(piece);
      });
      await eventually("two lists", () => two.test(text));
      watching.child.kill("SIGINT");
      expect(await watching.done).toMatchObject({ code: 130, stderr: "" });
    },
  );

  it("a watched list ends with exit code 0 and prints no error after the reader has closed the pipe", async () => {
    const watching = fleet.start(["list", "--watch"]);
    await new Promise((resolve) => watching.child.stdout?.once("data", resolve));
    watching.child.stdout?.destroy();
    expect(await watching.done).toMatchObject({ code: 0, signal: null, stderr: "" });
  });
});
