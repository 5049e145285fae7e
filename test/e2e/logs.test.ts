import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { ServerLog, ServerLogs } from "../../src/cli/commands/logs.js";
import { readLogKey, signedLine } from "../../src/runtime/files/server-log.js";
import { rotateLog } from "../../src/serve/logs.js";
import type { ServerView } from "../../src/servers/server.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { isRunning } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();

/** Replaces the parts of a log line that differ from run to run. */
function plain(line: string): string {
  return line
    .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/g, "TIME")
    .replace(/([Pp]rocess) \d+/g, "$1 N")
    .replace(/port \d+/, "port P")
    .replace(/\((?:\/|version).*\)/, "(X)");
}

const LAUNCH = [
  "TIME [copilotfleet] Launch on port P by process N (X).",
  "copilotfleet: TCP_NODELAY is set",
  "CLI server listening on port P",
  "TIME [copilotfleet] Process N answers on port P (X).",
];

async function linesOf(user: string, ...flags: string[]): Promise<string[]> {
  return (await fleet.json<ServerLog>(["logs", user, ...flags])).lines;
}

async function kill({ pid }: ServerView): Promise<void> {
  process.kill(pid ?? 0, "SIGKILL");
  await eventually("the server's death", () => !isRunning(pid ?? 0));
}

describe("the log of a server", () => {
  it("a server's log has the time of each launch and of each end, and --previous shows the launch before the last one", async () => {
    const user = unused("ann");
    const server = await fleet.spawn(user);
    await fleet.ok(["stop", "--user", user]);
    await fleet.spawn(user);
    await fleet.ok(["stop", "--user", user, "--force"]);
    await fleet.spawn(user);
    await fleet.ok(["restart", "--user", user, "--rolling"]);
    const lines = await linesOf(user);
    const stopped = "TIME [copilotfleet] Process N was stopped by process N";
    expect(lines.map(plain)).toEqual([
      ...LAUNCH,
      `${stopped}: ended after SIGTERM.`,
      ...LAUNCH,
      `${stopped}: killed by SIGKILL.`,
      ...LAUNCH,
      ...LAUNCH,
      `${stopped}, because process N replaces it: ended after SIGTERM.`,
    ]);
    expect(lines[3]).toContain(`Process ${server.pid} answers on port ${server.port} (version ${server.version}).`);
    const times = lines.flatMap((line) => /^\S+Z(?= \[copilotfleet\])/.exec(line)?.[0] ?? []);
    expect(times).toEqual(times.toSorted());
    expect(Math.abs(Date.now() - Date.parse(times.at(-1) ?? ""))).toBeLessThan(600_000);
    expect(await linesOf(user, "--previous")).toEqual(lines.slice(10, 14));
    expect(await linesOf(user, "-p", "-n", "1")).toEqual(lines.slice(13, 14));
  });

  it("logs adds one line about the end of a killed server, and later commands do not add it again", async () => {
    const user = unused("bea");
    const server = await fleet.spawn(user);
    await kill(server);
    const lines = await linesOf(user);
    expect(lines.slice(0, LAUNCH.length).map(plain)).toEqual(LAUNCH);
    expect(lines.slice(LAUNCH.length)).toEqual([
      expect.stringMatching(`Process ${server.pid} ended(: killed by SIGKILL\\.$| in an unknown way)`),
    ]);
    await fleet.ps();
    await fleet.spawn(user);
    expect((await linesOf(user)).slice(0, lines.length)).toEqual(lines);
  });

  it("the fleet logs a failed launch on a new line, even if the server's last line is incomplete", async () => {
    const user = unused("cat");
    const server = await fleet.spawn(user);
    await fleet.ok(["stop", "--user", user]);
    appendFileSync(server.log, "half a line");
    await fleet.refusal(7, ["spawn", "--user", user], { env: { COPILOT_CLI_PATH: "/bin/false" } });
    expect((await linesOf(user)).slice(LAUNCH.length + 1).map(plain)).toEqual([
      "half a line",
      "TIME [copilotfleet] Launch on port P by process N (X).",
      "TIME [copilotfleet] Process N ended before it answered: exit code 1.",
    ]);
  });

  it("logs --since and -t work for lines of rotated log files and for lines without a timestamp", async () => {
    const user = unused("dan");
    const server = await fleet.spawn(user);
    await fleet.ok(["stop", "--user", user]);
    const hourAgo = new Date(Date.now() - 3_600_000).toISOString();
    const key = readLogKey(server.log);
    const aged = readFileSync(server.log, "utf8").replace(
      /^(\S+)( \[copilotfleet\] .*) #\S+$/gm,
      (_, _time, rest: string) => signedLine(`${hourAgo}${rest}`, key),
    );
    await fleet.ok(["logs", user]);
    await rotateLog(server.log, { maxBytes: 0, keep: 2 });
    const rotated = `${server.log}.1`;
    expect(readFileSync(rotated, "utf8").split("\n")).toHaveLength(LAUNCH.length + 2);
    writeFileSync(rotated, aged);
    await fleet.spawn(user);
    expect((await linesOf(user)).map(plain)).toHaveLength(2 * LAUNCH.length + 1);
    expect((await linesOf(user, "--since", "30m")).map(plain)).toEqual(LAUNCH);
    expect(await linesOf(user, "--since", hourAgo)).toHaveLength(2 * LAUNCH.length + 1);
    expect(await linesOf(user, "--since", "2h", "-n", "5")).toHaveLength(5);
    expect(await linesOf(user, "--since", "2999-01-01")).toEqual([]);
    const timed = (await fleet.ok(["logs", user, "-t", "-n", "4"])).trimEnd().split("\n");
    expect(timed.map((line) => line.replace(/^\S+Z/, "TIME"))).toEqual([
      expect.stringMatching(/^TIME \[copilotfleet\] Launch on port \d+ by process \d+ \(.*\)\.$/),
      expect.stringMatching(/^- {24}copilotfleet: TCP_NODELAY is set$/),
      expect.stringMatching(/^- {24}CLI server listening on port \d+$/),
      expect.stringMatching(/^TIME \[copilotfleet\] Process \d+ answers on port \d+ \(version .*\)\.$/),
    ]);
    const many = Array.from({ length: 150 }, (_, index) => `line ${index}`);
    appendFileSync(server.log, `${many.join("\n")}\n`);
    expect((await linesOf(user, "--since", "30m")).slice(LAUNCH.length)).toEqual(many);
    expect(await linesOf(user)).toEqual(many.slice(-100));
    for (const value of ["", "10", "yesterday", "2026-13-01", "-5m", "1 h"]) {
      const error = await fleet.refusal(2, ["logs", user, `--since=${value}`]);
      expect(error.message).toContain(`--since is "${value}". Allowed:`);
    }
    await fleet.refusal(2, ["logs", user, "--previous", "-f"]);
  });

  it("logs marks a line that a server forged in the fleet's format, and never treats it as a line of the fleet", async () => {
    const user = unused("gil");
    const server = await fleet.spawn(user);
    const [signed = ""] = readFileSync(server.log, "utf8").split("\n");
    const forged = [
      "2001-01-01T00:00:00.000Z [copilotfleet] Launch on port 1 by process 1 (/x, without a sandbox).",
      signed.replace("Launch on", "LAUNCH on"),
    ];
    const marked = forged.map((line) => `[server] ${line}`);
    appendFileSync(server.log, `${forged.join("\n")}\n`);
    expect((await linesOf(user)).slice(LAUNCH.length)).toEqual(marked);
    expect((await linesOf(user, "--since", "1h")).slice(LAUNCH.length)).toEqual(marked);
    expect(await linesOf(user, "--previous")).toEqual([]);
    expect(await fleet.ok(["logs", user, "-t", "-n", "2"])).toBe(
      `${marked.map((line) => `${"-".padEnd(24)} ${line}\n`).join("")}`,
    );
    const following = fleet.start(["logs", user, "-f", "-n", "1"]);
    let printed = "";
    following.child.stdout?.on("data", (piece: Buffer | string) => {
      printed += String(piece);
    });
    await eventually("the last line", () => printed.includes(marked[1] ?? ""));
    appendFileSync(server.log, forged[0]?.slice(0, 40) ?? "");
    await fleet.ok(["restart", "--user", user]);
    await eventually("the lines of the restart", () => printed.includes("answers on port"));
    following.child.kill("SIGINT");
    await following.done;
    expect(printed).toContain(`\n[server] ${forged[0]?.slice(0, 40)}\n`);
    expect(printed.match(/^\S+Z \[copilotfleet\] .*$/gm)?.every((line) => !line.includes(" #"))).toBe(true);
  });

  it("logs --all shows the logs of all servers with their ids, and follows them with -f", async () => {
    const [eve, fay] = [await fleet.spawn(unused("eve")), await fleet.spawn(unused("fay-with-a-long-name"))];
    const { logs } = await fleet.json<ServerLogs>(["logs", "--all"]);
    const ids = (await fleet.ps()).map(({ id }) => id);
    expect(logs.map(({ server }) => server).toSorted()).toEqual(ids.toSorted());
    expect(logs.find(({ server }) => server === eve.id)?.lines.map(plain)).toEqual(LAUNCH);
    const following = fleet.start(["logs", "--all", "-f", "-n", "1"]);
    let printed = "";
    following.child.stdout?.on("data", (piece: Buffer | string) => {
      printed += String(piece);
    });
    const width = Math.max(...(await fleet.ps()).map(({ id }) => id.length));
    const lineOf = ({ id }: ServerView, text: string) => `${id.padEnd(width)} | ${text}\n`;
    const hasLineOf = ({ id }: ServerView) => printed.includes(`${id.padEnd(width)} | `);
    await eventually("the last line of each log", () => hasLineOf(eve) && hasLineOf(fay));
    appendFileSync(eve.log, "from é");
    appendFileSync(fay.log, "from fay\n");
    await eventually("the line of one log", () => printed.includes(lineOf(fay, "from fay")));
    appendFileSync(eve.log, "ve\n");
    await eventually("the line of the other log", () => printed.includes(lineOf(eve, "from éve")));
    following.child.kill("SIGINT");
    expect(await following.done).toMatchObject({ code: 130, stderr: "" });
    await fleet.refusal(2, ["logs", "--all", "--user", "eve"]);
    await fleet.refusal(2, ["logs", eve.id, "--all"]);
  });

  it("logs prints control characters unchanged to a pipe, and escaped on a terminal", async () => {
    const server = await fleet.spawn("gil");
    appendFileSync(server.log, "a\x1b[2Jb\x9b\n");
    expect(await fleet.ok(["logs", "gil", "-n", "1"])).toBe("a\x1b[2Jb\x9b\n");
    await using terminal = new Terminal(fleet, ["logs", "gil", "-n", "1"]);
    await terminal.done;
    expect(terminal.raw).toBe("a\\u{1b}[2Jb\\u{9b}\r\n");
  });
});

describe("the argument of logs and stop", () => {
  it("an exact id of a user or of a server wins over the beginning of another id", async () => {
    const [hal, hal2, upper] = [await fleet.spawn("hal"), await fleet.spawn("hal2"), await fleet.spawn("Hal")];
    const logged = async (reference: string) => (await fleet.json<ServerLog>(["logs", reference])).server;
    expect(await logged("hal")).toBe(hal.id);
    expect(await logged("Hal")).toBe(upper.id);
    expect(await logged(hal2.id)).toBe(hal2.id);
    expect(await logged(hal2.id.slice(0, -1))).toBe(hal2.id);
    await fleet.refusal(4, ["logs", "ha"]);
    // A user id may be equal to the id of a server. Then the id means that server.
    const tricky = await fleet.spawn(hal.id);
    expect(await logged(hal.id)).toBe(hal.id);
    expect(await logged(tricky.id)).toBe(tricky.id);
    const stopped = async (reference: string) =>
      (await fleet.json<{ stopped: { id: string }[] }>(["stop", reference])).stopped.map(({ id }) => id);
    expect(await stopped("hal")).toEqual([hal.id]);
    expect(await stopped("Hal")).toEqual([upper.id]);
    await fleet.refusal(4, ["stop", "ha"]);
    expect((await fleet.server("hal2")).state).toBe("ready");
    const user = "Ünï";
    const other = await fleet.spawn(user);
    expect(await logged(user)).toBe(other.id);
    expect(await fleet.json(["restart", user])).toMatchObject({ stopped: [{ id: other.id }] });
  });
});
