import { spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { FleetError } from "../../base/errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import { connectProblem } from "../../runtime/launch/launch.js";

const ANSWER_MS = 2_000;
/** How long the program that opens browsers may take, in milliseconds. */
const OPEN_MS = 5_000;

/** The address of the console on this host. @throws FleetError `FLEET_HOST_AWAY` if it cannot be reached. */
export async function consoleAddress(fleet: Fleet): Promise<string> {
  const supervisor = await fleet.pool.supervisor();
  const start = "copilotfleet serve --http 127.0.0.1:4380" as const;
  if (supervisor === null) throw closed("serve does not run on this host, so nobody serves the console.", [start]);
  if (supervisor.http === null) {
    const restart = "Set serve.http, for example to 127.0.0.1:4380, and restart serve.";
    throw closed("serve runs on this host without serve.http, so it does not serve the console.", [restart]);
  }
  const { hostname, port, protocol } = new URL(supervisor.http);
  const address = { host: hostname.replace(/^\[|\]$/g, ""), port: Number(port || (protocol === "https:" ? 443 : 80)) };
  const problem = await connectProblem(address, ANSWER_MS);
  if (problem === null) return supervisor.http;
  throw closed(`The console at ${supervisor.http} cannot be reached: ${problem}.`, ["copilotfleet doctor"]);
}

/** Whether this process has a display on which a browser can appear. */
export function hasDisplay({ DISPLAY, WAYLAND_DISPLAY } = process.env): boolean {
  return [DISPLAY, WAYLAND_DISPLAY].some((display) => display !== undefined && display !== "");
}

/**
 * Opens the address in the user's browser. Passes the browser a file that redirects to the address and that only this
 * user can read. On a command line, every user of this machine could read the address with its one-time code, and use
 * the code before the browser does.
 *
 * @returns false if `xdg-open` does not exist or fails within 5 seconds
 */
export async function openInBrowser(stateFolder: string, url: string): Promise<boolean> {
  const file = join(stateFolder, "console.html");
  const page = `<!doctype html><meta http-equiv="refresh" content="0; url=${url}"><a href="${url}">Open the console</a>\n`;
  await writeFile(file, page, { mode: 0o600 });
  return await new Promise<boolean>((resolve) => {
    const opener = spawn("xdg-open", [file], { stdio: "ignore", detached: true });
    const timer = setTimeout(() => resolve(true), OPEN_MS);
    opener.once("error", () => resolve(false));
    opener.once("exit", (code) => resolve(code === 0));
    opener.once("close", () => clearTimeout(timer));
    opener.unref();
  });
}

function closed(message: string, suggestions: FleetError["suggestions"]): FleetError {
  return new FleetError("FLEET_HOST_AWAY", message, { suggestions, retryable: false });
}
