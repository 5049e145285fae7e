import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { beforeEach, expect, it, onTestFinished } from "vitest";
import { logPath } from "../../src/runtime/files/server-folder.js";
import {
  appendToLog,
  lastWords,
  lineOfFleet,
  makeLogKey,
  readableLine,
  readLogKey,
  signedLine,
} from "../../src/runtime/files/server-log.js";

const LINE = "2026-01-02T03:04:05.678Z [copilotfleet] Process 7 was stopped by process 8: ended after SIGTERM.";

let home: string;
let log: string;
beforeEach(() => {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-signature-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  home = join(folder, "home");
  mkdirSync(home);
  log = logPath(home);
  makeLogKey(log);
});

it("makeLogKey makes a log's key only once, with mode 0600", () => {
  const key = readLogKey(log);
  makeLogKey(log);
  expect(readLogKey(log)).toEqual(key);
  expect(key).toHaveLength(32);
  expect(statSync(join(dirname(log), "log-key")).mode & 0o777).toBe(0o600);
});

it("lineOfFleet and readableLine return a signed line of the fleet without its signature", () => {
  const key = readLogKey(log);
  const signed = signedLine(LINE, key);
  expect(signed).toMatch(/^2026.*SIGTERM\. #[\w-]{16}$/);
  expect(lineOfFleet(signed, key)).toBe(LINE);
  expect(readableLine(signed, key)).toBe(LINE);
});

it("a line counts as a line of the fleet only if its signature matches its text and the log's key", () => {
  const key = readLogKey(log);
  const signed = signedLine(LINE, key);
  const forged = [
    LINE,
    `${LINE} #AAAAAAAAAAAAAAAA`,
    `${LINE} #`,
    signed.replace("Process 7", "Process 9"),
    signed.replace("2026", "2027"),
    signed.replace(/ #/, ". #"),
    `${signed} `,
    ` ${signed}`,
    `\x1b[2K${signed}`,
    signedLine(LINE, Buffer.alloc(32)),
  ];
  for (const line of forged) {
    expect(lineOfFleet(line, key), line).toBeNull();
    expect(readableLine(line, key)).toBe(`[server] ${line}`);
  }
  expect(readableLine("CLI server listening on port 5000", key)).toBe("CLI server listening on port 5000");
});

it("lineOfFleet accepts unsigned lines of the fleet in a log without a key, to which no server has written", () => {
  expect(lineOfFleet(LINE, null)).toBe(LINE);
  expect(lineOfFleet("2026-01-02T03:04:05.678Z something else", null)).toBeNull();
});

it("lastWords includes a line that the server forged, and leaves out the lines of the fleet", () => {
  writeFileSync(log, `panic\n${LINE}\n`);
  appendToLog(home, "Process 7 ended.");
  expect(readFileSync(log, "utf8")).toMatch(/ended\. #[\w-]{16}\n$/);
  expect(lastWords(home)).toBe(`panic | ${LINE}`);
});
