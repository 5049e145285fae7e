import { Flags } from "@oclif/core";
import { deadline } from "../../base/clock.js";
import { isFleetError } from "../../base/errors.js";
import type { SessionView } from "../../sessions/view.js";
import { FleetCommand } from "../base-command.js";
import {
  actingUserFlag,
  durationFlag,
  given,
  memberFlags,
  membersOf,
  modelFlag,
  promptFlag,
  purposeFlag,
  sessionIdFlag,
  titleFlag,
  ttlFlag,
} from "../flags/flags.js";
import { markPrompts, readPrompt } from "../prompt.js";
import { afterPrompt, createInterruptibly, printTurn, showingExpiry, whatBecameOf, withoutSession } from "../turn.js";

/** How long a server may take to start and to create a session, in milliseconds. */
const CREATE_MS = 30_000;

export default class Create extends FleetCommand {
  static override summary = "Create a session for a user and print its id.";
  static override examples = [
    "<%= config.bin %> create --user alice",
    '<%= config.bin %> create --user alice --purpose review --prompt "Hello"',
  ];
  static override flags = {
    user: actingUserFlag,
    id: sessionIdFlag,
    purpose: purposeFlag("purpose of the session"),
    title: titleFlag,
    model: modelFlag,
    prompt: promptFlag("first prompt to send; prints its reply after the id"),
    ephemeral: Flags.boolean({
      description: "delete the session after its first use: after --prompt, or otherwise after the first send",
    }),
    ...memberFlags,
    wait: durationFlag("wait", "how long to wait while session.maxActive sessions are loaded (default: 30s)"),
    ttl: ttlFlag,
  };

  async run(): Promise<{ session: SessionView; reply: string | null }> {
    const { flags } = await this.parse(Create, markPrompts(this.argv));
    const { purpose, title, model, ttl } = flags;
    const members = membersOf(flags);
    const prompt = flags.prompt === undefined ? undefined : await readPrompt(flags.prompt);
    return await this.withFleet(async (fleet) => {
      const signal = this.interruptSignal();
      using _ = this.progress("Creating the session");
      using limit = deadline(CREATE_MS, signal);
      const creating = createInterruptibly(fleet, { user: flags.user, signal }, async () =>
        fleet.sessions.create({
          user: flags.user,
          ephemeral: flags.ephemeral,
          needsModel: prompt !== undefined,
          signal: limit.signal,
          ...given({ sessionId: flags.id, purpose, title, model, ttl, members, wait: flags.wait }),
        }),
      );
      const session = await (prompt === undefined ? creating : creating.catch(withoutSession));
      this.log(session.sessionId);
      const output = { json: this.jsonEnabled(), signal, isEphemeral: flags.ephemeral };
      const leave = async (park: boolean) => showingExpiry(await fleet.sessions.leave(session, { park }), output);
      if (prompt === undefined) return { session: await leave(true), reply: null };
      try {
        const { text } = await printTurn(output, session.sessionId, (options) =>
          fleet.sessions.send(session, prompt, options),
        );
        return { session: await leave(false), reply: text };
      } catch (error) {
        if (!isFleetError(error)) throw error;
        throw afterPrompt(error, await whatBecameOf(fleet, session.sessionId, flags));
      }
    });
  }
}
