import { connect } from "node:net";
import { systemCode } from "../../errors.js";

/** Why no program accepts connections at the address, or null if one does. Sends no data. */
export function connectProblem(address: { host: string; port: number }, timeoutMs: number): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = connect(address);
    const settle = (problem: string | null) => {
      socket.destroy();
      resolve(problem);
    };
    // This timer limits the name lookup, too.
    const timer = setTimeout(() => settle(`no answer within ${timeoutMs / 1_000} s`), timeoutMs);
    socket.once("close", () => clearTimeout(timer));
    socket.once("connect", () => settle(null));
    socket.once("error", (error) => settle(reachProblem(error)));
  });
}

/** The reason in the error of a connection that failed. */
export function reachProblem(error: unknown): string {
  return REASONS[systemCode(error) ?? ""] ?? (error instanceof Error ? error.message : String(error));
}

const REASONS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "connection refused",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "no route to the network",
  ENOTFOUND: "the name of the host is unknown",
  EAI_AGAIN: "the name of the host cannot be looked up",
};
