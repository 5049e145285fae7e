import { render } from "preact";
import { App } from "./app.js";
import { applyTheme, themeOf } from "./parts/hooks.js";
import "./styles/main.css";

applyTheme(themeOf());
const root = document.getElementById("app");
if (root !== null) render(<App />, root);
