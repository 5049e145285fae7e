import { ask, segment } from "../api/client.js";
import { Dialog } from "../parts/dialog.js";
import { plural } from "../parts/show.js";
import type { Receipt, User } from "./types.js";

export type UserVerb = "start" | "suspend" | "resume" | "purge";

interface Action {
  title: string;
  isDangerous?: boolean;
  effects(user: User): readonly string[];
}

const ACTIONS: Readonly<Record<UserVerb, Action>> = {
  start: { title: "Start the server", effects: () => ["The user's own server starts, with the same home."] },
  suspend: {
    title: "Suspend",
    isDangerous: true,
    effects: () => [
      "The fleet refuses the user at every entry point, with all tokens and sign-ons.",
      "The user's turns and connections end within seconds, and the user's server stops.",
      "Sessions and all other data stay.",
    ],
  },
  resume: { title: "Resume", effects: () => ["The user's tokens and sign-ons are valid again."] },
  purge: {
    title: "Purge",
    isDangerous: true,
    effects: ({ sessions, tokens }) => [
      `This erases ${plural(sessions, "session")}, the server with its files, and ${plural(tokens, "token")}, on all hosts.`,
      "The user's turns are cut.",
      "In usage and events, a pseudonym replaces the name.",
      "There is no way back.",
    ],
  },
};

interface UserActionProps {
  verb: UserVerb;
  user: User;
  /** Whether this user is the operator who is signed in. */
  isOwn: boolean;
  close(): void;
  /** @param receipt null unless the action was a purge */
  done(receipt: Receipt | null): Promise<void>;
}

/** Asks for confirmation before an action on a user, and lists its effects. */
export function UserAction({ verb, user, isOwn, close, done }: UserActionProps) {
  const { title, isDangerous = false, effects } = ACTIONS[verb];
  const act = async () => {
    const path = `/v1/users/${segment(user.user)}`;
    const receipt = verb === "purge" ? await ask<Receipt>("DELETE", path) : null;
    if (verb !== "purge") await ask("POST", `${path}/${verb}`);
    await done(receipt);
  };
  const of = verb === "start" ? "Start the server of" : title;
  return (
    <Dialog title={`${of} ${user.user}?`} action={title} isDangerous={isDangerous} act={act} close={close}>
      <ul class="effects">
        {effects(user).map((effect) => (
          <li key={effect}>{effect}</li>
        ))}
        {isOwn && isDangerous && <li>This user is you. You will be signed out.</li>}
      </ul>
    </Dialog>
  );
}
