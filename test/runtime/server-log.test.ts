import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { beforeEach, describe, expect, it, onTestFinished } from "vitest";
import { ALL_PROTECTIONS, NO_SANDBOX, notRestricted, type SandboxReport } from "../../src/base/sandbox.js";
import {
  createServerFolder,
  homeOf,
  logPath,
  readConnectionToken,
  writeConnectionToken,
} from "../../src/runtime/files/server-folder.js";
import { appendToLog, launchText } from "../../src/runtime/files/server-log.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const LAUNCH = { port: 5000, runtimePath: "/x", sandbox: NO_SANDBOX };

let home: string;
let log: string;
beforeEach(() => {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-log-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  home = join(folder, "home");
  log = logPath(home);
});

const AT = new Date("2026-01-02T03:04:05.678Z");

describe("a line of the fleet in the log of a server", () => {
  it("a launch line names what the sandbox leaves open, and never calls a server with an open network one without a network", () => {
    const words = (sandbox: SandboxReport) => /\(\/x, (.*)\)\.$/.exec(launchText({ ...LAUNCH, sandbox }))?.[1];
    expect(words({ mode: "bwrap", not: ["network", "resources"] })).toBe(
      "in the sandbox bwrap; network: open, resources: unlimited",
    );
    expect(words({ mode: "bwrap", not: [], network: "none" })).toBe("in the sandbox bwrap; network: none");
    expect(notRestricted(ALL_PROTECTIONS)).toBe("everything: open");
  });

  it("appendToLog moves the log's modification time only to a later known time, because gc takes it for the last use", () => {
    appendFileSync(log, "a\n");
    utimesSync(log, AT, AT);
    appendToLog(home, "ended", null);
    expect(statSync(log).mtime).toEqual(AT);
    appendToLog(home, "ended", new Date(AT.getTime() - 5_000));
    expect(statSync(log).mtime).toEqual(AT);
    const later = new Date(AT.getTime() + 5_000);
    appendToLog(home, "ended", later);
    expect(statSync(log).mtime).toEqual(later);
  });

  it("appendToLog drops a text without an error if the log is missing, a link or a folder, or if the disk is full", () => {
    appendToLog(home, "x");
    expect(() => statSync(log)).toThrow("ENOENT");
    const other = `${log}.other`;
    appendFileSync(other, "");
    symlinkSync(other, log);
    appendToLog(home, "x");
    expect(readFileSync(other, "utf8")).toBe("");
    rmSync(log);
    mkdirSync(log);
    appendToLog(home, "x");
    rmSync(log, { recursive: true });
    symlinkSync("/dev/full", log);
    appendToLog(home, "x");
  });
});

/** Creates a server's folder. `temporary` is the path to which a new connection token is first written. */
async function serverFolder(): Promise<{ home: string; temporary: string }> {
  const root = await temporaryRoot();
  mkdirSync(join(root, "servers"), { recursive: true });
  const home = homeOf(root, "alice");
  createServerFolder(home);
  return { home, temporary: join(dirname(home), "connection-token.tmp") };
}

it("writeConnectionToken replaces a link at its temporary path, and does not write to the link's target", async () => {
  const { home, temporary } = await serverFolder();
  const elsewhere = join(dirname(home), "elsewhere");
  writeFileSync(elsewhere, "untouched", { mode: 0o644 });
  symlinkSync(elsewhere, temporary);
  const token = writeConnectionToken(home);
  expect(readFileSync(elsewhere, "utf8")).toBe("untouched");
  expect(readConnectionToken(home)).toBe(token);
  expect(statSync(join(dirname(home), "connection-token")).mode & 0o777).toBe(0o600);
});

it("writeConnectionToken replaces the temporary file of a killed start, and the token file has mode 0600", async () => {
  const { home, temporary } = await serverFolder();
  writeFileSync(temporary, "half", { mode: 0o644 });
  const token = writeConnectionToken(home);
  expect(readConnectionToken(home)).toBe(token);
  expect(statSync(join(dirname(home), "connection-token")).mode & 0o777).toBe(0o600);
});
