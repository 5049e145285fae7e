import { useEffect, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import type { Answer } from "../api/types.js";
import { go } from "./hooks.js";

/** How many names to propose. */
const MOST = 200;

/** Lets an operator choose the user that a page is about. The user then becomes a part of the page's address. */
export function ChooseUser({ page, user }: { page: string; user: string }) {
  const [name, setName] = useState(user);
  const [known, setKnown] = useState<readonly string[]>([]);
  useEffect(() => setName(user), [user]);
  useEffect(() => void knownUsers().then(setKnown), []);
  const choose = (event: Event) => {
    event.preventDefault();
    const wanted = name.trim();
    go(wanted === "" ? `/${page}` : `/${page}/${encodeURIComponent(wanted)}`);
  };
  return (
    <form class="choose" onSubmit={choose}>
      <input
        type="search"
        class="search"
        list="known-users"
        aria-label="User"
        placeholder="All users"
        dir="auto"
        autocomplete="off"
        spellcheck={false}
        value={name}
        onInput={({ currentTarget }) => setName(currentTarget.value)}
      />
      <datalist id="known-users">
        {known.map((each) => (
          <option key={each} value={each} />
        ))}
      </datalist>
      <button type="submit" class="button">
        Show
      </button>
      {user !== "" && (
        <a class="button" href={`#/${page}`}>
          Show all users
        </a>
      )}
    </form>
  );
}

/** The users to propose; empty if the API does not return them. The operator can type any other name. */
async function knownUsers(): Promise<string[]> {
  const { users } = await ask<Answer<"listUsers">>("GET", "/v1/users").catch(() => ({ users: [] }));
  return users.map(({ user }) => user).slice(0, MOST);
}
