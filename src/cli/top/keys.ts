import type { Key } from "../run/screen.js";
import type { ViewName } from "./views.js";

/** An action on the selected row. */
export type Action = "drain" | "restart" | "evict" | "logs" | "transcript";

interface ActionKey {
  action: Action;
  /** The views in which the action is possible. */
  views: readonly ViewName[];
  label: string;
  /** The question before an action that interrupts somebody; undefined for an action that only reads. */
  question?: (target: string) => string;
}

const ACTIONS: Readonly<Record<string, ActionKey>> = {
  D: {
    action: "drain",
    views: ["servers"],
    label: "drain",
    question: (target) => `Drain server ${target}? It finishes its turns, then stops.`,
  },
  R: {
    action: "restart",
    views: ["servers"],
    label: "restart",
    question: (target) => `Restart server ${target}? It finishes its turns first.`,
  },
  E: {
    action: "evict",
    views: ["sessions"],
    label: "evict",
    question: (target) => `Evict session ${target}? Its server unloads it; its history stays.`,
  },
  l: { action: "logs", views: ["servers"], label: "logs" },
  t: { action: "transcript", views: ["sessions"], label: "transcript" },
};

export function actionOf({ text = "" }: Key, view: ViewName): ActionKey | undefined {
  const found = Object.hasOwn(ACTIONS, text) ? ACTIONS[text] : undefined;
  return found?.views.includes(view) === true ? found : undefined;
}

/** The lines of the page with all keys. */
export function keyLines(): string[] {
  const actions = Object.entries(ACTIONS).map(([key, { views, label }]) => [key, `${label} (in ${views.join(", ")})`]);
  const keys = [
    ["q", "ends top, or closes a page"],
    ["? h", "shows this page"],
    ["Tab", "shows the next view"],
    ["1 to 4", "shows servers, sessions, users or hosts"],
    ["↑ ↓", "selects a row, as do PgUp, PgDn, Home and End"],
    ["/", "filters the rows; Esc shows all again"],
    ["s S", "sorts by the next column; reverses the order"],
    ...actions,
  ];
  return keys.map(([key = "", effect = ""]) => `${key.padEnd(8)}${effect}`);
}

/** The last line of the screen: the keys of the view. */
export function hintsOf(view: ViewName): string {
  const actions = Object.entries(ACTIONS).filter(([, { views }]) => views.includes(view));
  return [
    "q: quit",
    "?: keys",
    "Tab: view",
    "/: filter",
    "s S: sort",
    ...actions.map(([key, { label }]) => `${key}: ${label}`),
    "↑↓: select",
  ].join("  ");
}
