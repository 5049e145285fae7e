import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { ifThere } from "./if-there.js";
import { replaceServerFile, unwritable } from "./server-folder.js";

/*
 * The agent of a server can write anything to the server's log, because the log is the output of the server. So the fleet
 * signs its own lines. The key is beside the log, and the sandbox keeps both out of the agent's reach.
 */

const KEY_BYTES = 32;
const SIGNATURE_BYTES = 12;
/** A line of the fleet: time, `[copilotfleet]`, text and signature. */
const LINE = /^([\d-]+T[\d:.]+Z \[copilotfleet\] .*?)(?: #([\w-]{16}))?$/s;
const MARK = /\[copilotfleet\]/i;
/** Precedes a line that looks like a line of the fleet, but has no valid signature. */
const NOT_OF_FLEET = "[server] ";

export type LogKey = Buffer;

function keyPath(log: string): string {
  return join(dirname(log), "log-key");
}

/** Makes the key of a log if it has none. The caller must hold the claim on the server. */
export function makeLogKey(log: string): void {
  const path = keyPath(log);
  try {
    if (!existsSync(path)) replaceServerFile(path, randomBytes(KEY_BYTES).toString("base64url"));
  } catch (cause) {
    throw unwritable(path, cause);
  }
}

/** The key of a log. Null before the first launch of its server, so no agent has written to the log. */
export function readLogKey(log: string): LogKey | null {
  return ifThere(() => Buffer.from(readFileSync(keyPath(log), "utf8"), "base64url"));
}

/** A line of the fleet with its signature, as the log contains it. Without a key, the line stays unsigned. */
export function signedLine(line: string, key: LogKey | null): string {
  return key === null ? line : `${line} #${signatureOf(line, key).toString("base64url")}`;
}

/** Returns a line of the fleet without its signature; null if the fleet did not write the line. */
export function lineOfFleet(line: string, key: LogKey | null): string | null {
  const [, text, signature] = LINE.exec(line) ?? [];
  if (text === undefined) return null;
  if (key === null) return signature === undefined ? text : null;
  if (signature === undefined) return null;
  return timingSafeEqual(Buffer.from(signature, "base64url"), signatureOf(text, key)) ? text : null;
}

/**
 * A log line as people read it: without its signature, or with `[server]` before it if it only imitates a line of the
 * fleet.
 */
export function readableLine(line: string, key: LogKey | null): string {
  return lineOfFleet(line, key) ?? (MARK.test(line) ? `${NOT_OF_FLEET}${line}` : line);
}

function signatureOf(line: string, key: LogKey): Buffer {
  return createHmac("sha256", key).update(line).digest().subarray(0, SIGNATURE_BYTES);
}
