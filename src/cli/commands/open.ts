import { spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Flags } from "@oclif/core";
import { FleetError } from "../../base/errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { Scope } from "../../identity/identity.js";
import { connectProblem } from "../../runtime/launch/launch.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlag, given, onlySessionFlag, scopeFlag } from "../flags/flags.js";

interface OpenedConsole {
  /** The address with the one-time code. */
  url: string;
  user: string;
  scopes: Scope[];
  /** The only session that the console shows; null if it shows all sessions of the user. */
  sessionId: string | null;
  /** When the code expires. */
  expiresAt: string | null;
  /** Whether the command asked a browser to open the address. */
  opened: boolean;
}

export default class Open extends FleetCommand {
  static override summary = "Open the console in a browser, or print its address with a one-time code.";
  static override description =
    "The code signs in once, within five minutes. The console then acts as this user for up to eight hours. Without a display, " +
    "or with --print or --json, the command only prints the address. serve must run on this host with serve.http.";
  static override examples = [
    "<%= config.bin %> open --user alice",
    "<%= config.bin %> open --user alice --scope admin --print",
  ];
  static override flags = {
    user: actingUserFlag,
    scope: scopeFlag,
    session: onlySessionFlag("console shows"),
    print: Flags.boolean({ description: "print the address, also if this machine has a display" }),
  };

  async run(): Promise<OpenedConsole> {
    const { flags } = await this.parse(Open);
    const { user, scope: scopes, session: sessionId } = flags;
    return await this.withFleet(async (fleet) => {
      const address = await consoleAddress(fleet);
      const { token: code, ...issued } = await fleet.tokens.issueCode(user, given({ scopes, sessionId }));
      const url = `${address}/#code=${code}`;
      const opened = !flags.print && !this.jsonEnabled() && hasDisplay() && (await openInBrowser(fleet.stateRoot, url));
      this.log(opened ? `The browser opens the console for ${user}.` : url);
      return { url, user, scopes: issued.scopes, sessionId: issued.sessionId, expiresAt: issued.expiresAt, opened };
    });
  }
}

const ANSWER_MS = 2_000;
/** How long the program that opens browsers may take, in milliseconds. */
const OPEN_MS = 5_000;

/** The address of the console on this host. @throws FleetError `FLEET_HOST_AWAY` if it cannot be reached. */
async function consoleAddress(fleet: Fleet): Promise<string> {
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
function hasDisplay({ DISPLAY, WAYLAND_DISPLAY } = process.env): boolean {
  return [DISPLAY, WAYLAND_DISPLAY].some((display) => display !== undefined && display !== "");
}

/**
 * Opens the address in the user's browser. Passes the browser a file that redirects to the address and that only this
 * user can read. On a command line, every user of this machine could read the address with its one-time code, and use
 * the code before the browser does.
 *
 * @returns false if `xdg-open` does not exist or fails within 5 seconds
 */
async function openInBrowser(stateFolder: string, url: string): Promise<boolean> {
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
