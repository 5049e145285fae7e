import { Flags } from "@oclif/core";
import { validateSessionId } from "../../base/ids.js";
import type { Scope } from "../../identity/identity.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlag, given, scopeFlag } from "../flags/flags.js";
import { consoleAddress, hasDisplay, openInBrowser } from "../run/console.js";

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
    session: Flags.string({
      description: "the only session that the console shows; the user owns it or is a member",
      helpValue: "SESSION",
      parse: async (value) => validateSessionId(value, "--session"),
    }),
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
