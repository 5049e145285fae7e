import { closeSync, openSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { system } from "../../system/system.js";
import { EGRESS_SOCKET } from "./folder.js";
import type { EgressResult } from "./outbound.js";
import { STATUS_REQUEST } from "./proxy.js";

/** The content of a server's rules file. The launch writes the file, and the proxy reads it. */
export interface ServerEntry {
  user: string | null;
  server: string;
  allow: readonly string[];
}

export interface EgressStatus {
  pid: number;
  /** An id that differs for each process of the proxy. */
  id: string;
  version: string;
  /** The number of requests since the process started, by their result. */
  counts: Readonly<Record<EgressResult, number>>;
}

const ANSWER_MS = 2_000;

/** Asks the proxy for its status. Null if no proxy answers in time. @param folder the network folder */
export async function askProxy(folder: string): Promise<EgressStatus | null> {
  let held: number;
  try {
    held = openSync(folder, "r");
  } catch {
    return null;
  }
  try {
    // Connect through the descriptor, because the folder's path may be too long for a Unix socket.
    const text = await answerOf(join(system().files.pathOf(held), EGRESS_SOCKET));
    return JSON.parse(text) as EgressStatus;
  } catch {
    return null;
  } finally {
    closeSync(held);
  }
}

async function answerOf(path: string): Promise<string> {
  return await new Promise((resolve, reject) => {
    let answer = "";
    const socket = connect(path, () => socket.write(`${STATUS_REQUEST}\n`));
    const timer = setTimeout(() => socket.destroy(), ANSWER_MS);
    socket.setEncoding("utf8");
    socket.on("data", (chunk: string) => {
      answer += chunk;
    });
    socket.on("error", reject);
    socket.on("close", () => {
      clearTimeout(timer);
      resolve(answer);
    });
  });
}
