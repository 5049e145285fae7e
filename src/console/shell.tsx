import type { ComponentType } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Problem, signOut } from "./api/client.js";
import type { Caller, Scope } from "./api/types.js";
import { Chat } from "./chat/chat.js";
import { Sessions } from "./pages/sessions.js";
import { go, keepTheme, THEMES, themeOf, useAnswer, useRoute } from "./parts/hooks.js";
import { Button, Empty, Loading, ProblemPage } from "./parts/notice.js";

export interface PageProps {
  caller: Caller;
  /** The part of the address after the page's name, decoded. */
  id: string;
}

/** How often the page checks whether its token is still valid, in milliseconds. */
const CHECK_MS = 3_000;

interface Page {
  /** The first part of the address. */
  name: string;
  title: string;
  scope: Scope;
  load(): Promise<ComponentType<PageProps>> | ComponentType<PageProps>;
}

/** The pages in the navigation. All but the first load their code on first use. */
const PAGES: readonly Page[] = [
  { name: "sessions", title: "Sessions", scope: "read", load: () => Sessions },
  { name: "usage", title: "Usage", scope: "read", load: async () => (await import("./usage/usage.js")).Usage },
  { name: "events", title: "Events", scope: "read", load: async () => (await import("./events/events.js")).Events },
  { name: "servers", title: "Servers", scope: "admin", load: async () => (await import("./admin/servers.js")).Servers },
  { name: "users", title: "Users", scope: "admin", load: async () => (await import("./admin/users.js")).Users },
  {
    name: "all-sessions",
    title: "All sessions",
    scope: "admin",
    load: async () => (await import("./admin/all-sessions.js")).AllSessions,
  },
  { name: "tokens", title: "Tokens", scope: "admin", load: async () => (await import("./admin/tokens.js")).Tokens },
  { name: "charts", title: "Charts", scope: "admin", load: async () => (await import("./charts/charts.js")).Charts },
];

/** The frame of all pages: the navigation, the user, and the page that the address names. */
export function Shell({ caller }: { caller: Caller }) {
  const route = useRoute();
  const main = useRef<HTMLElement>(null);
  const isFirst = useRef(true);
  const [, name = "", ...rest] = route.split("/");
  const id = decode(rest.join("/"));
  useEffect(() => {
    // Move the focus, so that a screen reader continues with the new page.
    if (!isFirst.current) main.current?.focus();
    isFirst.current = false;
  }, [route]);
  // Go to the first page before the user can open another one.
  useLayoutEffect(() => {
    if (caller.sessionId !== null) go(`/sessions/${encodeURIComponent(caller.sessionId)}`);
    else if (name === "") location.replace("#/sessions");
  }, [name, caller.sessionId]);
  const pages = PAGES.filter(({ scope }) => scope !== "admin" || caller.scopes.includes("admin"));
  const isChat = name === "sessions" && id !== "";
  return (
    <div class={`shell ${isChat ? "shell-chat" : ""}`}>
      <a class="skip" href={`#${route}`} onClick={(event) => focusOn(event, main.current)}>
        Skip to the content
      </a>
      <header class="top">
        <a class="brand" href="#/sessions">
          <span class="brand-mark" aria-hidden="true" />
          copilotfleet
        </a>
        <nav aria-label="Pages">
          {caller.sessionId === null &&
            pages.map((page) => (
              <a key={page.name} href={`#/${page.name}`} aria-current={page.name === name ? "page" : undefined}>
                {page.title}
              </a>
            ))}
        </nav>
        <UserMenu caller={caller} />
      </header>
      <main ref={main} tabIndex={-1} id="main">
        {isChat ? (
          <Chat key={id} caller={caller} id={id} />
        ) : (
          <PageFor pages={pages} name={name} id={id} caller={caller} />
        )}
      </main>
    </div>
  );
}

function PageFor({ pages, name, id, caller }: PageProps & { pages: readonly Page[]; name: string }) {
  const [loaded, setLoaded] = useState<{ name: string; Content: ComponentType<PageProps> | null }>();
  const page = pages.find((each) => each.name === name);
  useEffect(() => {
    if (page === undefined) return;
    void Promise.resolve(page.load()).then(
      (Content) => setLoaded({ name, Content }),
      () => setLoaded({ name, Content: null }),
    );
  }, [page, name]);
  if (page === undefined && name !== "") return <Empty title="There is no such page." />;
  if (loaded?.name !== name) return <Loading />;
  if (loaded.Content === null) {
    return (
      <ProblemPage problem={NOT_LOADED}>
        <Button act={() => location.reload()}>Reload the console</Button>
      </ProblemPage>
    );
  }
  return <loaded.Content caller={caller} id={id} />;
}

/** The code of a page could not be loaded. */
const NOT_LOADED = new Problem({
  status: 0,
  detail: "This page could not be loaded.",
  suggestions: ["The fleet does not answer, or it was upgraded after you opened the console."],
});

function UserMenu({ caller }: { caller: Caller }) {
  // If the token is no longer valid, the answer is 401, which signs the page out.
  useAnswer("/v1/me", CHECK_MS);
  const [theme, setTheme] = useState(themeOf());
  return (
    <details class="menu">
      <summary>
        <span class="avatar" aria-hidden="true" data-initial={[...caller.user][0]?.toUpperCase()} />
        <span class="menu-name" dir="auto">
          {caller.user}
        </span>
      </summary>
      <div class="menu-items">
        <p class="quiet">
          Signed in as <b dir="auto">{caller.user}</b>, with scope {caller.scopes.join(", ")}
        </p>
        <fieldset class="themes">
          <legend>Colours</legend>
          {THEMES.map((each) => (
            <label key={each}>
              <input
                type="radio"
                name="theme"
                checked={each === theme}
                onChange={() => {
                  keepTheme(each);
                  setTheme(each);
                }}
              />
              {each}
            </label>
          ))}
        </fieldset>
        <Button class="wide" act={() => void signOut()}>
          Sign out
        </Button>
      </div>
    </details>
  );
}

function focusOn(event: Event, element: HTMLElement | null): void {
  event.preventDefault();
  element?.focus();
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
